"""From rank files to engines: trtllm-build's command line, where it runs, whether it did as ordered."""
