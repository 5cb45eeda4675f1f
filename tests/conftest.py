"""What all tests share"""
import signal

# A shell that starts a job in the background lets it ignore Ctrl-C, and so do its children; the tests of Ctrl-C mean the ordinary way
signal.signal(signal.SIGINT, signal.default_int_handler)
