-- Answers JSON: [name, scheduled, waiting, ready, running, dead, age of the oldest ready job, drain rate, paused].

local all, found = call('HGETALL', P .. 'queues'), {}
for i = 1, #all, 2 do
  local queue = queue_of(all[i])
  if queue.had then
    local head, age = call('ZRANGE', P .. 'heads:' .. queue.name, 0, 0, 'WITHSCORES'), 0
    if head[1] then age = max(0, now - head[2]) end
    local count = queue.count
    found[#found + 1] = format('[%s,%d,%d,%d,%d,%d,%.17g,%.17g,%d]', cjson.encode(queue.name), count[1], count[2],
      count[3], count[4], count[5 + 1], age, drain_per_s(queue), queue.paused and 1 or 0)
  end
end
return '[' .. table.concat(found, ',') .. ']'
