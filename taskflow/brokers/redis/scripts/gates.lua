-- Answers names and records in turn.

local found = {}
for _, name in ipairs(call('ZRANGE', P .. 'gates', 0, -1)) do
  found[#found + 1] = name
  found[#found + 1] = call('HGETALL', P .. 'gate:' .. name)
end
return found
