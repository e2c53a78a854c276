-- Answers JSON: [name, seconds since its last beat, lease, what it said (JSON in a string)].

local names, found = call('ZRANGEBYSCORE', P .. 'presences', '(' .. num(now), '+inf'), {}
local said = #names == 0 and {} or many('HMGET', P .. 'said', names)
for i = 1, #names do
  local at, lease, text = said[i]:match('^(%S+) (%S+) (.*)$')
  found[i] = format('[%s,%.17g,%s,%s]', cjson.encode(names[i]), now - at, lease, cjson.encode(text))
end
return '[' .. table.concat(found, ',') .. ']'
