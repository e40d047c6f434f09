"""What holds for every test: signals mean to the processes they start what they mean in a shell."""

import signal

if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup, which every child would inherit
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
