"""What running a model tells: sessions, data, streamed statistics, the clock."""
