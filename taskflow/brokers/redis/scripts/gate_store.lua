-- ARGV: time, name, the generation that the change was computed from, values (JSON, name → text or false: none).
-- Answers the record as it is now, and 1 if the change was stored. Neither `live` nor `tat` is ever among the values.

local name, key = ARGV[2], P .. 'gate:' .. ARGV[2]
if (call('HGET', key, 'generation') or '0') ~= ARGV[3] then return { call('HGETALL', key), 0 } end
even_when_full()
for field, value in pairs(cjson.decode(ARGV[4])) do
  if value then call('HSET', key, field, value) else call('HDEL', key, field) end
end
call('ZADD', P .. 'gates', 'NX', 0, name)
stir(name)
local kids = call('SMEMBERS', P .. 'gate-kids:' .. name)
for i = 1, #kids do stir(kids[i]) end
flush()
return { call('HGETALL', key), 1 }
