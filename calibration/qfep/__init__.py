"""QFeP: searching the prefix whose KV cache absorbs the spikes."""
