-- ARGV: time, queue, 1 to pause or 0 to resume.

even_when_full()
local queue = queue_of(ARGV[2])
queue.paused = ARGV[3] == '1'
queue.dirty = true
queue.wake = not queue.paused
flush()
