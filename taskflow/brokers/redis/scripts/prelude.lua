-- What every verb's script begins with, behind `allowed`: the clock, and the parts that jobs move through. Follows the
-- memory broker.
--
-- A job is a row in the hash `hot` (packed; what changes) and a value in `body` (what it was submitted as). Ready rows
-- stand in the lines of a lane, a sorted set a priority; lanes with something to claim stand in the rings of their
-- queue; a lane that its gate does not admit stands in a ring of that gate instead. What a script reads of queues,
-- lanes and gates is kept in tables and written by `flush`, in few commands with many arguments.
--
-- Only commands and options of Redis 6.2. KEYS[1] is the prefix of all keys: one hash tag, so one slot.

local call, pack, unpacked = redis.call, cmsgpack.pack, cmsgpack.unpack
local format, floor, ceil, max, min, huge = string.format, math.floor, math.ceil, math.max, math.min, math.huge

local SCHEDULED, READY, RUNNING, SUCCEEDED, DEAD, CANCELLED, EXPIRED = 1, 3, 4, 5, 6, 7, 8 -- 2 is WAITING

-- The fields of a row.
local SEQ, STATE, LANE, PRIORITY, DUE, FIRST_DUE, EXPIRES, READY_AT, SUBMITTED = 1, 2, 3, 4, 5, 6, 7, 8, 9
local ATTEMPTS, SNOOZES, LOST, TOKEN, SETTLED, WORKER, STARTED, FINISHED = 10, 11, 12, 13, 14, 15, 16, 17
local REASON, CANCEL, KEY, BATCH, WHY, ERRORS, RESULT, CHECKPOINT, PROGRESS = 18, 19, 20, 21, 22, 23, 24, 25, 26
local FIELDS = 26

local QUOTA, WAKE, PARKS, PROMOTE, ERRORS_KEPT, SUSPECT_AFTER = 4, 25, 100, 1000, 50, 2
local STIRS = 1000 -- gates whose hold is over that one claim looks at
local LOOKS = 200 -- stirred gates of one queue that one claim looks at
local MANY = 2000 -- arguments of one command: Lua unpacks no more than 8,000

local function clock()
  if ARGV[1] ~= '' then return tonumber(ARGV[1]) end -- a test's own time
  local time = call('TIME')
  return time[1] + time[2] / 1000000
end
local now = clock()

local function num(value) -- Lua's own way to write a number loses microseconds
  return format('%.17g', value)
end

-- A server whose memory is full refuses a script's first command if that may take memory, and none after a first one
-- that may not. What frees memory, or leads to it, must go on: this deletes nothing, and comes first.
local function even_when_full()
  call('DEL', P .. 'nothing')
end

-- ---- commands that wait for their fellows ----

local later, order = {}, {}

local function add(command, key, one, two)
  local id = command .. key
  local args = later[id]
  if not args then
    args = { command, key }
    later[id] = args
    order[#order + 1] = args
  end
  local n = #args
  args[n + 1] = one
  args[n + 2] = two
end

local function send(args)
  local n = #args
  if n <= MANY then
    call(unpack(args))
    return
  end
  for from = 3, n, MANY do
    call(args[1], args[2], unpack(args, from, min(n, from + MANY - 1)))
  end
end

local function send_all()
  local sent = order
  later, order = {}, {}
  for i = 1, #sent do send(sent[i]) end
end

local function many(command, key, names) -- the answers of a command that takes many names
  if #names <= MANY then return call(command, key, unpack(names)) end
  local all = {}
  for from = 1, #names, MANY do
    local some = call(command, key, unpack(names, from, min(#names, from + MANY - 1)))
    for i = 1, #some do all[#all + 1] = some[i] end
  end
  return all
end

-- ---- rows ----

local rows, changed = {}, {} -- id → row

local function load_rows(ids)
  local missing = {}
  for i = 1, #ids do
    if rows[ids[i]] == nil then missing[#missing + 1] = ids[i] end
  end
  if #missing == 0 then return end
  local found = many('HMGET', P .. 'hot', missing)
  for i = 1, #missing do
    rows[missing[i]] = found[i] and unpacked(found[i]) or false
  end
end

local function member(id, row) -- of a line: at one instant, the order of submission decides
  return format('%012x', row[SEQ]) .. id
end

-- ---- queues ----

local queues = {}

local function queue_of(name)
  local queue = queues[name]
  if queue then return queue end
  local kept = call('HGET', P .. 'queues', name)
  local count, turns, drain, drain_at, paused, had = nil, 0, 0, 0, false, false
  if kept then
    count, turns, drain, drain_at, paused, had = unpack(unpacked(kept))
  else
    count = { 0, 0, 0, 0, 0, 0, 0, 0 }
  end
  queue = {
    name = name, count = count, turns = turns, drain = drain, drain_at = drain_at, paused = paused, had = had,
    left = 0, wake = false, heads = {}, dirty = false,
  }
  queues[name] = queue
  return queue
end

local function next_turn(queue)
  queue.turns = queue.turns + 1
  queue.dirty = true
  return queue.turns
end

local function drain_per_s(queue)
  return queue.drain * 2 ^ (-max(0, now - queue.drain_at) / 10)
end

-- ---- gates: core/gate.py and core/bucket.py ----

local gates = {}
local NONE = {}

local function gate_of(name)
  local gate = gates[name]
  if gate then return gate end
  gate = { name = name, queued = {}, live = 0, tat = 0, held_until = 0, era = 0, failed = 0 }
  gates[name] = gate
  local kept = call('HGETALL', P .. 'gate:' .. name)
  for i = 1, #kept, 2 do
    gate[kept[i]] = tonumber(kept[i + 1]) -- nil for the reason, which no script needs
  end
  local slash = name:find('/', 1, true)
  if slash then gate.parent = gate_of(name:sub(1, slash - 1)) end
  return gate
end

local function limit_of(gate)
  local parent = gate.parent or NONE
  local limit = gate.limit_override or parent.limit_override or gate.limit or parent.limit
  if not gate.ramp then return limit end
  return limit and min(limit, gate.ramp) or gate.ramp
end

local function rate_of(gate) -- interval, burst; nil without a rate
  local parent = gate.parent or NONE
  if gate.interval_override then return gate.interval_override, gate.burst_override end
  if parent.interval_override then return parent.interval_override, parent.burst_override end
  if gate.interval then return gate.interval, gate.burst end
  return parent.interval, parent.burst
end

local function counted(tat, interval, burst)
  if now < tat and tat <= now + interval * burst + 10 then return tat end
  return now
end

local function admit(gate) -- room (huge: no bound), and at none of it when to look again
  local held = gate.held_until
  if gate.parent then held = max(held, gate.parent.held_until) end
  if held > now then return 0, held end
  local limit, room = limit_of(gate), huge
  if limit then room = max(0, limit - gate.live) end
  if room == 0 then return 0, nil end
  local interval, burst = rate_of(gate)
  if not interval then return room, nil end
  local tat = counted(gate.tat, interval, burst)
  local tokens = max(0, burst - ceil((tat - now - 1e-6) / interval))
  if tokens == 0 then return 0, max(now, tat - interval * (burst - 1)) end
  return min(room, tokens), nil
end

local function take(gate, count)
  local interval, burst = rate_of(gate)
  if interval then gate.tat = counted(gate.tat, interval, burst) + interval * count end
  gate.live = gate.live + count
  gate.dirty = true
end

local function give_back(gate, ended, unused)
  local interval = rate_of(gate)
  if interval then gate.tat = gate.tat - interval * unused end
  gate.live = max(0, gate.live - ended)
  gate.dirty = true
end

local function queued_at(gate, queue) -- its ready and scheduled jobs in this queue
  local count = gate.queued[queue.name]
  if not count then
    count = tonumber(call('HGET', P .. 'gate-jobs:' .. gate.name, queue.name) or 0)
    gate.queued[queue.name] = count
  end
  return count
end

local function add_queued(gate, queue, step)
  gate.queued[queue.name] = queued_at(gate, queue) + step
  gate.recount = true
end

local function waiting_ring(queue, gate)
  return P .. 'held:' .. #queue.name .. ':' .. queue.name .. ':' .. gate.name
end

local function stir(gate) -- a name. It may have opened: the next claim from each queue with lanes waiting there looks
  local names = call('SMEMBERS', P .. 'gate-queues:' .. gate)
  for i = 1, #names do
    local queue = queue_of(names[i])
    call('ZADD', P .. 'stirred:' .. queue.name, 'NX', next_turn(queue), gate)
    queue.wake = true
  end
end

local function look_again(gate, at)
  if at then call('ZADD', P .. 'openings', 'LT', num(at), gate.name) end
end

-- ---- lanes ----

local lanes, parsed, grown = {}, {}, {}
local TURNS = 2 ^ 44 -- of one priority

local function words_of(text) -- a lane's words: queue, key, gates
  local words = parsed[text]
  if not words then
    words = cjson.decode(text)
    parsed[text] = words
  end
  return words
end

local function queue_of_row(row)
  return queue_of(words_of(row[LANE])[1])
end

local function gates_of_row(row)
  return words_of(row[LANE])[3]
end

local function top_of(mask)
  for priority = 9, 0, -1 do
    if bit.band(mask, bit.lshift(1, priority)) ~= 0 then return priority end
  end
  return -1
end

local function keep_lane(id, kept)
  local words = words_of(id:sub(2))
  local is_suspect = id:byte(1) == 49
  local mask, at = 0, ''
  if kept then
    mask, at = kept:match('^(%d+) (.*)$')
    mask = tonumber(mask)
  end
  local lane = {
    id = id, queue = queue_of(words[1]), gates = words[3], is_suspect = is_suspect, mask = mask, top = top_of(mask),
    at = at, -- the gate that it waits at; '' for an open one
    kind = (#words[3] > 0 and 1 or 0) + (is_suspect and 2 or 0), dirty = false,
  }
  lanes[id] = lane
  return lane
end

local function lane_of(id) -- '0' or, of suspects, '1', then the lane's words
  return lanes[id] or keep_lane(id, call('HGET', P .. 'lanes', id))
end

local function load_lanes(ids) -- in one command: a batch may be of as many lanes as jobs
  local found = many('HMGET', P .. 'lanes', ids)
  for i = 1, #ids do keep_lane(ids[i], found[i]) end
end

local function ring_of(lane)
  if lane.at == '' then return P .. 'ring:' .. lane.kind .. ':' .. lane.queue.name end
  return waiting_ring(lane.queue, gate_of(lane.at))
end

local function enter_ring(lane, later_too) -- with `later_too` once all is sent: no ring is read before
  if lane.at == '' then lane.queue.heads[lane.kind] = nil end
  (later_too and add or call)('ZADD', ring_of(lane), num(next_turn(lane.queue) - lane.top * TURNS), lane.id)
end

local function leave_ring(lane)
  if lane.at == '' then lane.queue.heads[lane.kind] = nil end
  call('ZREM', ring_of(lane), lane.id)
end

local function line_of(lane, priority)
  return P .. 'line:' .. priority .. ':' .. lane.id
end

local function lane_of_row(row)
  return lane_of((row[LOST] >= SUSPECT_AFTER and '1' or '0') .. row[LANE])
end

local function place(id, row) -- where a claim will find it
  if row[STATE] == SCHEDULED then
    local queue = queue_of_row(row)
    add('ZADD', P .. 'due:' .. queue.name, num(row[DUE]), member(id, row))
    queue.wake = true -- who waits for the next instant must look again
    return
  end
  local lane, priority = lane_of_row(row), row[PRIORITY]
  local queue = lane.queue
  add('ZADD', line_of(lane, priority), num(row[DUE]), member(id, row))
  local firsts = lane.firsts
  if not firsts then
    firsts = {}
    lane.firsts = firsts
    grown[#grown + 1] = lane
  end
  if not firsts[priority] or row[DUE] < firsts[priority] then firsts[priority] = row[DUE] end
  local flag = bit.lshift(1, priority)
  if bit.band(lane.mask, flag) == 0 then
    local was = lane.mask
    lane.mask = bit.bor(was, flag)
    lane.dirty = true
    if priority > lane.top then
      if was ~= 0 then leave_ring(lane) end
      lane.top = priority
      enter_ring(lane, true)
    end
  end
  if lane.at == '' then queue.wake = true end
end

local function send_lines() -- what was placed, before lines are read
  local heads = {} -- queue → instants and lines in turn
  for i = 1, #grown do
    local lane = grown[i]
    local of = heads[lane.queue.name] or {}
    heads[lane.queue.name] = of
    for priority, due in pairs(lane.firsts) do
      of[#of + 1] = num(due)
      of[#of + 1] = priority .. ':' .. lane.id
    end
    lane.firsts = nil
  end
  grown = {}
  for name, of in pairs(heads) do
    for from = 1, #of, MANY do
      call('ZADD', P .. 'heads:' .. name, 'LT', unpack(of, from, min(#of, from + MANY - 1)))
    end
  end
  send_all()
end

local function lines_changed(lane, priority) -- after rows left a line: its head, and whether it is one
  local head = call('ZRANGE', line_of(lane, priority), 0, 0, 'WITHSCORES')
  local name = priority .. ':' .. lane.id
  if head[1] then
    call('ZADD', P .. 'heads:' .. lane.queue.name, head[2], name)
    return
  end
  call('ZREM', P .. 'heads:' .. lane.queue.name, name)
  lane.mask = bit.band(lane.mask, bit.bnot(bit.lshift(1, priority)))
  lane.dirty = true
end

local function leave_line(id, row) -- a row that waits ends where it stands. Its state is still what it was.
  if row[STATE] == SCHEDULED then
    call('ZREM', P .. 'due:' .. queue_of_row(row).name, member(id, row))
    return
  end
  local lane = lane_of_row(row)
  call('ZREM', line_of(lane, row[PRIORITY]), member(id, row))
  lines_changed(lane, row[PRIORITY])
  local top = top_of(lane.mask)
  if top == lane.top then return end
  leave_ring(lane)
  lane.top = top
  if top >= 0 then enter_ring(lane) else lane.at = '' end
end

-- ---- a row's walk ----

local function move(row, state)
  local queue, before = queue_of_row(row), row[STATE]
  queue.count[before] = queue.count[before] - 1
  queue.count[state] = queue.count[state] + 1
  queue.dirty = true
  row[STATE] = state
  local step = ((state == READY or state == SCHEDULED) and 1 or 0) - ((before == READY or before == SCHEDULED) and 1 or 0)
  if step ~= 0 then
    local names = gates_of_row(row)
    for i = 1, #names do add_queued(gate_of(names[i]), queue, step) end
  end
end

local ended = {} -- ids of jobs that became final

local function finish(id, row, state) -- into a final state: its key is free, whoever waits for it hears
  move(row, state)
  row[FINISHED] = now
  local queue = queue_of_row(row)
  queue.left = queue.left + 1
  local name = member(id, row)
  add('ZREM', P .. 'expiries', name)
  add('ZADD', P .. (state == DEAD and 'dead' or 'ended'), num(now), name)
  if row[KEY] then add('HDEL', P .. 'keys', row[KEY]) end
  ended[#ended + 1] = id
  changed[id] = row
end

local function add_error(id, row, words) -- words: '"type","message","kind","stack"]'
  local key = P .. 'errors:' .. id
  call('RPUSH', key, format('[%d,%s,', row[ATTEMPTS] + 1, num(now)) .. words)
  call('LTRIM', key, -ERRORS_KEPT, -1)
  row[ERRORS] = true
end

local function requeue(id, row, delay) -- run it again: at its old place without a delay. Unless a person said cancel.
  if row[CANCEL] then
    finish(id, row, CANCELLED)
    return
  end
  row[READY_AT] = now
  if not delay then
    move(row, READY)
  else
    row[DUE] = now + max(0, delay)
    move(row, delay > 0 and SCHEDULED or READY)
  end
  add('ZADD', P .. 'expiries', num(row[EXPIRES]), member(id, row)) -- upkeep may have met it while it ran
  changed[id] = row
  place(id, row)
end

local freed = {} -- gate → { claims that ended, of them unused }

local function end_claim(id, row, is_unused)
  add('HDEL', P .. 'claims:' .. row[WORKER], id)
  row[WORKER] = false
  local names = gates_of_row(row)
  for i = 1, #names do
    local of = freed[names[i]]
    if not of then
      of = { 0, 0 }
      freed[names[i]] = of
    end
    of[1] = of[1] + 1
    if is_unused then of[2] = of[2] + 1 end
  end
end

local function free()
  for name, of in pairs(freed) do
    local gate = gate_of(name)
    give_back(gate, of[1], of[2])
    stir(name)
  end
  freed = {}
end

local function forget(id, row) -- a final job
  local name = member(id, row)
  local queue = queue_of_row(row)
  queue.count[row[STATE]] = queue.count[row[STATE]] - 1
  queue.dirty = true
  for _, kept in ipairs({ 'hot', 'body', 'results', 'checkpoints', 'progress' }) do add('HDEL', P .. kept, id) end
  add('ZREM', P .. 'jobs', id)
  for _, kept in ipairs({ 'ended', 'dead', 'result-ages' }) do add('ZREM', P .. kept, name) end
  if row[BATCH] then
    for _, line in ipairs({ 'ended', 'dead', 'result-ages' }) do
      add('ZREM', P .. 'kept:' .. line .. ':' .. row[BATCH], name)
    end
  end
  if row[ERRORS] then call('UNLINK', P .. 'errors:' .. id) end
  rows[id] = false
  changed[id] = nil
end

-- ---- batches ----
--
-- `batches` holds those that are not finished, by the instant at which a submit named them last, and at 0 those that
-- are, but whose rows still wait aside (`kept:...`).

local function is_unfinished(batch)
  return tonumber(call('ZSCORE', P .. 'batches', batch) or 0) > 0
end

local function finish_batch(batch, some) -- moves back what waits aside, at most `some` rows. Answers how many it did.
  local moved, is_left = 0, false
  for _, line in ipairs({ 'result-ages', 'ended', 'dead' }) do
    local aside = P .. 'kept:' .. line .. ':' .. batch
    local found = call('ZPOPMIN', aside, some - moved)
    for i = 1, #found, 2 do add('ZADD', P .. line, found[i + 1], found[i]) end
    moved = moved + #found / 2
    is_left = is_left or call('EXISTS', aside) == 1
  end
  if is_left then call('ZADD', P .. 'batches', 'XX', 0, batch) else call('ZREM', P .. 'batches', batch) end
  return moved
end

-- ---- all that is left to write ----

local function tell_finals() -- whoever waits for these jobs to end
  local found = ended
  ended = {}
  if #found == 0 or call('EXISTS', P .. 'awaited') == 0 then return end
  local asked, ids = many('HMGET', P .. 'awaited', found), {}
  for i = 1, #found do
    if asked[i] then ids[#ids + 1] = found[i] end
  end
  if #ids == 0 then return end
  for i = 1, #ids do add('HDEL', P .. 'awaited', ids[i]) end
  call('PUBLISH', P .. 'ends', table.concat(ids, ' '))
end

local function flush()
  for id, row in pairs(changed) do add('HSET', P .. 'hot', id, pack(row)) end
  changed = {}
  for _, gate in pairs(gates) do
    if gate.dirty or gate.recount then call('ZADD', P .. 'gates', 'NX', 0, gate.name) end
    if gate.dirty then
      call('HSET', P .. 'gate:' .. gate.name, 'live', num(gate.live), 'tat', num(gate.tat))
      gate.dirty = false
    end
    if gate.recount then
      for name, count in pairs(gate.queued) do
        local key = P .. 'gate-jobs:' .. gate.name
        if count > 0 then add('HSET', key, name, count) else add('HDEL', key, name) end
      end
      gate.recount = false
    end
  end
  for id, lane in pairs(lanes) do
    if lane.dirty then
      if lane.mask == 0 then add('HDEL', P .. 'lanes', id) else add('HSET', P .. 'lanes', id, lane.mask .. ' ' .. lane.at) end
      lane.dirty = false
    end
  end
  tell_finals()
  for name, queue in pairs(queues) do
    if queue.left > 0 then
      queue.drain = drain_per_s(queue) + queue.left * 0.069314718055994531 -- ln 2 / 10 s
      queue.drain_at = max(queue.drain_at, now)
      queue.left, queue.dirty = 0, true
    end
    if queue.dirty then
      add('HSET', P .. 'queues', name,
        pack({ queue.count, queue.turns, queue.drain, queue.drain_at, queue.paused, queue.had }))
      queue.dirty = false
    end
  end
  send_lines()
  for name, queue in pairs(queues) do
    if queue.wake then
      if call('DEL', P .. 'idle:' .. name) == 1 then call('PUBLISH', P .. 'work', name) end
      queue.wake = false
    end
  end
end
