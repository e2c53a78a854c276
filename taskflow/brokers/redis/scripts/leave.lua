-- ARGV: time, worker. Its lease ends now; the next reclaim takes what is left.

call('ZREM', P .. 'presences', ARGV[2])
call('HDEL', P .. 'said', ARGV[2])
if call('EXISTS', P .. 'claims:' .. ARGV[2]) == 1 then
  call('ZADD', P .. 'workers', 'XX', 0, ARGV[2])
else
  call('ZREM', P .. 'workers', ARGV[2])
end
