-- ARGV: time, queues (JSON), gated, suspects, timeout. Answers for how many seconds there is nothing to claim; 0: look
-- now. Until then whoever changes that tells the channel `work`.

local asked, is_gated, suspects, timeout = cjson.decode(ARGV[2]), tonumber(ARGV[3]) > 0, tonumber(ARGV[4]) > 0, tonumber(ARGV[5])
local at = now + timeout
even_when_full()
if is_gated then
  local opening = call('ZRANGE', P .. 'openings', 0, 0, 'WITHSCORES')
  if opening[1] then at = min(at, tonumber(opening[2])) end
end
for i = 1, #asked do
  local queue = queue_of(asked[i])
  if not queue.paused then
    for kind = 0, 3 do
      if (is_gated or kind % 2 == 0) and (suspects or kind < 2)
          and call('EXISTS', P .. 'ring:' .. kind .. ':' .. queue.name) == 1 then
        return '0'
      end
    end
    if is_gated and call('EXISTS', P .. 'stirred:' .. queue.name) == 1 then return '0' end
    local due = call('ZRANGE', P .. 'due:' .. queue.name, 0, 0, 'WITHSCORES')
    if due[1] then at = min(at, tonumber(due[2])) end
  end
end
if at <= now then return '0' end
local ms = ceil(min(timeout, 86400) * 1000) + 1000
for i = 1, #asked do
  local idle = P .. 'idle:' .. asked[i]
  if call('PTTL', idle) < ms then call('SET', idle, 1, 'PX', ms) end -- others may wait for longer
end
return num(at - now)
