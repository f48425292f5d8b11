"""What the scripts share: the command line, runs and their interruption, pages and curves, benchmark cases."""

import signal
import threading

if threading.current_thread() is threading.main_thread():
    # Until a script runs, Ctrl-C ends it without a word: there is nothing to save, and imports take seconds.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
