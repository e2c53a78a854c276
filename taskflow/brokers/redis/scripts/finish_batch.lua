-- ARGV: time, batch, rows. Its jobs are pruned as any other from now on. Answers how many are still to be moved back.

local left, some = 0, tonumber(ARGV[3])
call('SREM', P .. 'batches', ARGV[2])
for _, line in ipairs({ 'result-ages', 'ended', 'dead' }) do
  local aside = P .. 'kept:' .. line .. ':' .. ARGV[2]
  local found = call('ZPOPMIN', aside, some)
  for i = 1, #found, 2 do add('ZADD', P .. line, found[i + 1], found[i]) end
  left = left + call('ZCARD', aside)
end
send_all()
return left
