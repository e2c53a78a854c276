-- ARGV: time, worker, lease, tokens (JSON, id → token), what it says of itself (or ''). Answers JSON: the ids that are held, of them those to cancel.

local FORGOTTEN = 10 -- leases, as in brokers/base.py
local worker, tokens = ARGV[2], cjson.decode(ARGV[4])
even_when_full()
call('ZADD', P .. 'workers', num(now + ARGV[3]), worker)
if ARGV[5] ~= '' then
  call('ZADD', P .. 'presences', num(now + FORGOTTEN * ARGV[3]), worker) -- when it is forgotten
  call('HSET', P .. 'said', worker, num(now) .. ' ' .. ARGV[3] .. ' ' .. ARGV[5])
end
local claims = P .. 'claims:' .. worker
local all, held, cancel = call('HGETALL', claims), {}, {}
for i = 1, #all, 2 do
  local id = all[i]
  local token, missed, cancelled = all[i + 1]:match('^(%d+) (%d+) (%d)$')
  if tokens[id] == tonumber(token) then
    held[#held + 1] = id
    if cancelled == '1' then cancel[#cancel + 1] = id end
    if missed ~= '0' then add('HSET', claims, id, token .. ' 0 ' .. cancelled) end
  else
    missed = missed + 1
    add('HSET', claims, id, format('%s %d %s', token, missed, cancelled))
    if missed >= 2 then add('SADD', P .. 'late', worker) end
  end
end
send_all()
return { held, cancel }
