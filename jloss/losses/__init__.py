"""One room per task. Every name stands in `jloss` too."""
