-- ARGV: time, worker, queues (JSON), limit, gated, suspects, lease.
-- Answers: claims (JSON, [token, attempts, snoozes, lost, waited, age, expires in, bytes of body, bytes of checkpoint
-- or -1, recoveries]), bodies, checkpoints.

local worker = ARGV[2]
local asked = cjson.decode(ARGV[3])
local limit = tonumber(ARGV[4])
local left = { limit = limit, gated = tonumber(ARGV[5]), suspects = tonumber(ARGV[6]), wake = WAKE, promote = PROMOTE, parks = PARKS }

even_when_full()
call('ZADD', P .. 'workers', num(now + ARGV[7]), worker)

local function stir_due_gates()
  local due = call('ZRANGEBYSCORE', P .. 'openings', '-inf', num(now), 'LIMIT', 0, STIRS)
  if #due == 0 then return end
  call('ZREM', P .. 'openings', unpack(due))
  for i = 1, #due do stir(due[i]) end
end

local function promote(queue) -- scheduled jobs that are due become ready
  if left.promote <= 0 then return end
  local key = P .. 'due:' .. queue.name
  local due = call('ZRANGEBYSCORE', key, '-inf', num(now), 'LIMIT', 0, left.promote)
  if #due == 0 then return end
  left.promote = left.promote - #due
  call('ZREM', key, unpack(due))
  local ids = {}
  for i = 1, #due do ids[i] = due[i]:sub(13) end
  load_rows(ids)
  for i = 1, #ids do
    local row = rows[ids[i]]
    move(row, READY)
    row[READY_AT] = row[DUE]
    changed[ids[i]] = row
    place(ids[i], row)
  end
  send_lines()
end

local function no_lane_waits(queue, gate)
  call('SREM', P .. 'gate-queues:' .. gate.name, queue.name)
  if gate.parent and call('EXISTS', P .. 'gate-queues:' .. gate.name) == 0 then
    call('SREM', P .. 'gate-kids:' .. gate.parent.name, gate.name)
  end
end

local function wake_lanes(queue) -- lanes whose gate has opened are open again: no more than it has room for
  local key = P .. 'stirred:' .. queue.name
  local names = call('ZRANGE', key, 0, LOOKS - 1)
  for i = 1, #names do
    if left.wake <= 0 then return end
    local gate = gate_of(names[i])
    local admitted, again = admit(gate)
    local ring = waiting_ring(queue, gate)
    local ids = call('ZRANGE', ring, 0, min(left.wake, admitted)) -- one more than may be woken
    local room = min(left.wake, admitted)
    local woken = min(room, #ids)
    for n = 1, woken do
      local lane = lane_of(ids[n])
      leave_ring(lane)
      lane.at = ''
      lane.dirty = true
      enter_ring(lane)
    end
    left.wake = left.wake - woken
    if woken == #ids then
      no_lane_waits(queue, gate)
      call('ZREM', key, gate.name)
    elseif admitted == 0 then
      call('ZREM', key, gate.name)
      look_again(gate, again)
    end
  end
end

local function kinds() -- plain, gated, suspects, gated suspects
  local all = { 0 }
  local is_gated = left.gated > 0 and left.parks > 0
  if is_gated then all[2] = 1 end
  if left.suspects > 0 then
    all[#all + 1] = 2
    if is_gated then all[#all + 1] = 3 end
  end
  return all
end

local function first_in_turn(queue)
  local first, first_score = nil, huge
  for _, kind in ipairs(kinds()) do
    local head = queue.heads[kind]
    if head == nil then
      head = call('ZRANGE', P .. 'ring:' .. kind .. ':' .. queue.name, 0, 0, 'WITHSCORES')
      head[2] = head[1] and tonumber(head[2]) or huge
      queue.heads[kind] = head
    end
    if head[2] < first_score then first, first_score = head[1], head[2] end
  end
  return first and lane_of(first)
end

local function lanes_at(queue, top)
  local count = 0
  for _, kind in ipairs(kinds()) do
    local from = -top * TURNS
    count = count + call('ZCOUNT', P .. 'ring:' .. kind .. ':' .. queue.name, num(from), '(' .. num(from + TURNS))
  end
  return count
end

local function park(lane) -- it leaves the open ones, and waits at the first gate that does not admit it
  for i = 1, #lane.gates do
    local gate = gate_of(lane.gates[i])
    local room, again = admit(gate)
    if room == 0 then
      leave_ring(lane)
      lane.at = gate.name
      lane.dirty = true
      enter_ring(lane)
      call('SADD', P .. 'gate-queues:' .. gate.name, lane.queue.name)
      if gate.parent then call('SADD', P .. 'gate-kids:' .. gate.parent.name, gate.name) end
      look_again(gate, again)
      return
    end
  end
end

local function claim_in_turn(queue, taken)
  local top, quota = -1, 0
  while left.limit > 0 do
    local lane = first_in_turn(queue)
    if not lane then return end
    if lane.top ~= top then
      top = lane.top
      quota = max(QUOTA, ceil(limit / lanes_at(queue, top)))
    end
    local wanted, room = min(quota, left.limit), huge
    for i = 1, #lane.gates do room = min(room, (admit(gate_of(lane.gates[i])))) end
    if room == 0 then
      park(lane)
      left.parks = left.parks - 1
    else
      wanted = min(wanted, room)
      if #lane.gates > 0 then wanted = min(wanted, left.gated) end
      if lane.is_suspect then wanted = min(wanted, left.suspects) end
      leave_ring(lane)
      local popped = call('ZPOPMIN', line_of(lane, top), wanted)
      local count = #popped / 2
      for i = 1, #popped, 2 do taken[#taken + 1] = popped[i]:sub(13) end
      lines_changed(lane, top)
      lane.top = top_of(lane.mask)
      if lane.top >= 0 then enter_ring(lane) end
      for i = 1, #lane.gates do take(gate_of(lane.gates[i]), count) end
      if #lane.gates > 0 then left.gated = left.gated - count end
      if lane.is_suspect then left.suspects = left.suspects - count end
      left.limit = left.limit - count
    end
  end
end

local function recoveries(names)
  local found = {}
  for i = 1, #names do
    local gate = gate_of(names[i])
    if gate.era > 0 then found[#found + 1] = { gate.name, gate.era, gate.ramp or cjson.null, gate.failed } end
  end
  return #found > 0 and cjson.encode(found) or '0'
end

local taken = {}
if left.gated > 0 then stir_due_gates() end
for i = 1, #asked do
  local queue = queue_of(asked[i])
  if not queue.paused then
    promote(queue)
    if left.gated > 0 then wake_lanes(queue) end
    claim_in_turn(queue, taken)
    if left.limit <= 0 then break end
  end
end
if #taken == 0 then
  flush()
  return { '[]', '', '' }
end

load_rows(taken)
local bodies = many('HMGET', P .. 'body', taken)
-- Tokens also outgrow the clock's microseconds: one that a lost disk or a failover forgot is not given out again.
local numbers = P .. 'numbers'
local token = max(tonumber(call('HGET', numbers, 'token') or 0), floor(now * 1000000))
call('HSET', numbers, 'token', format('%.0f', token + #taken))
local claims, checkpoints = {}, {}
local with_checkpoint = {}
local held = P .. 'claims:' .. worker
for i = 1, #taken do
  local id = taken[i]
  local row = rows[id]
  token = token + 1
  move(row, RUNNING)
  row[TOKEN], row[WORKER], row[STARTED] = token, worker, now
  changed[id] = row
  add('HSET', held, id, format('%.0f 0 0', token)) -- beats missed, cancel requested
  local size, names = -1, gates_of_row(row)
  if row[CHECKPOINT] then
    local kept = call('HGET', P .. 'checkpoints', id)
    checkpoints[#checkpoints + 1] = kept
    size = #kept
  end
  claims[i] = format('[%.0f,%d,%d,%d,%.6f,%.6f,%.6f,%d,%d,%s]', token, row[ATTEMPTS], row[SNOOZES], row[LOST],
    max(0, now - row[READY_AT]), max(0, now - row[FIRST_DUE]), row[EXPIRES] - now, #bodies[i], size,
    #names > 0 and recoveries(names) or '0')
end
flush()
return { '[' .. table.concat(claims, ',') .. ']', table.concat(bodies), table.concat(checkpoints) }
