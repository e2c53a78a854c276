-- ARGV: time, max_lost, rows, result_s, finished_s, dead_s, batch_s, judged_at.
-- Answers what moved: [state, lost, reason], JSON, the bodies of these jobs, the time, and, if leases go
-- by an older one, the longest lease of all, or 0.

local max_lost, most = tonumber(ARGV[2]), tonumber(ARGV[3])
local lease_now = min(now, tonumber(ARGV[8])) -- a clock that was stepped forward ends no lease
local moved, ids = {}, {}

local function tell(id, row, reason)
  ids[#ids + 1] = id
  moved[#moved + 1] = format('[%d,%d,%s]', row[STATE], row[LOST], cjson.encode(reason))
end

local function lose(lost, reason) -- claims of one worker. If a suspect is among them, the loss is its own.
  load_rows(lost)
  local suspected = false
  for i = 1, #lost do suspected = suspected or rows[lost[i]][LOST] >= SUSPECT_AFTER end
  for i = 1, #lost do
    local id = lost[i]
    local row = rows[id]
    end_claim(id, row)
    if row[LOST] >= SUSPECT_AFTER or not suspected then row[LOST] = row[LOST] + 1 end
    if row[LOST] - SUSPECT_AFTER >= max_lost then
      add_error(id, row, format('"WorkerLost","its worker was lost %d times","lost",""]', row[LOST]))
      row[REASON] = 'lost'
      finish(id, row, DEAD)
    else
      requeue(id, row, nil)
    end
    tell(id, row, reason)
  end
end

local function take_back()
  local gone = call('ZRANGEBYSCORE', P .. 'workers', '-inf', num(lease_now), 'LIMIT', 0, most)
  for i = 1, #gone do
    if #moved >= most then return end
    lose(call('HKEYS', P .. 'claims:' .. gone[i]), 'lease_ended')
    call('ZREM', P .. 'workers', gone[i])
    call('SREM', P .. 'late', gone[i])
  end
  local late = call('SMEMBERS', P .. 'late')
  for i = 1, #late do
    if #moved >= most then return end
    local all, lost = call('HGETALL', P .. 'claims:' .. late[i]), {}
    for n = 1, #all, 2 do
      if tonumber(all[n + 1]:match('^%d+ (%d+)')) >= 2 then lost[#lost + 1] = all[n] end
    end
    lose(lost, 'missed_beats')
    call('SREM', P .. 'late', late[i])
  end
end

local function expire()
  local room = most - #moved
  if room <= 0 then return end
  local due = call('ZRANGEBYSCORE', P .. 'expiries', '-inf', num(now), 'LIMIT', 0, room)
  local found = {}
  for i = 1, #due do found[i] = due[i]:sub(13) end
  load_rows(found)
  for i = 1, #due do
    local id = found[i]
    local row = rows[id]
    if row and row[STATE] < RUNNING then
      leave_line(id, row)
      row[REASON] = row[WHY]
      finish(id, row, EXPIRED)
      tell(id, row, row[WHY])
    else
      add('ZREM', P .. 'expiries', due[i]) -- what runs comes back when it is to run again
    end
  end
end

local function finish_batches() -- those that nobody has named for so long, and the rest of those that are finished
  local room = most
  local old = call('ZRANGEBYSCORE', P .. 'batches', '-inf', num(max(0, now - ARGV[7])), 'LIMIT', 0, most)
  for i = 1, #old do
    if room <= 0 then break end
    room = room - finish_batch(old[i], room)
  end
  send_all()
end

local unfinished = {}
local function waits_aside(row)
  local batch = row[BATCH]
  if not batch then return false end
  if unfinished[batch] == nil then unfinished[batch] = is_unfinished(batch) end
  return unfinished[batch]
end

local function older(line, keep_s, some) -- rows that ended so long ago. Those of unfinished batches wait aside.
  local old, found = call('ZRANGEBYSCORE', P .. line, '-inf', num(now - keep_s), 'WITHSCORES', 'LIMIT', 0, some), {}
  if #old == 0 then return found end
  local of = {}
  for i = 1, #old, 2 do of[#of + 1] = old[i]:sub(13) end
  load_rows(of)
  for i = 1, #of do
    local row = rows[of[i]]
    add('ZREM', P .. line, old[2 * i - 1])
    if row then
      if waits_aside(row) then
        add('ZADD', P .. 'kept:' .. line .. ':' .. row[BATCH], old[2 * i], old[2 * i - 1])
      else
        found[#found + 1] = of[i]
      end
    end
  end
  return found
end

local function prune()
  for _, id in ipairs(older('result-ages', ARGV[4], most)) do
    local row = rows[id]
    row[RESULT] = 2
    changed[id] = row
    add('HDEL', P .. 'results', id)
  end
  flush() -- what is forgotten next is written no more
  local left = most
  for _, line in ipairs({ 'ended', 'dead' }) do
    if left <= 0 then break end
    local old = older(line, line == 'dead' and ARGV[6] or ARGV[5], left)
    for i = 1, #old do forget(old[i], rows[old[i]]) end
    left = left - #old
  end
end

local function is_idle(gate) -- as core.gate.is_idle, as long as no job waits for it
  if gate.live ~= 0 or gate.tat > now then return false end
  if gate.limit or gate.limit_override or gate.interval or gate.interval_override then return false end
  local over = gate.held_until
  if gate.ramp then over = over + 86400 end
  return over <= now
end

local function no_job_waits(gate) -- so no lane does, though no claim has come by to see that
  local key = P .. 'gate-queues:' .. gate.name
  local names = call('SMEMBERS', key)
  for i = 1, #names do add('ZREM', P .. 'stirred:' .. names[i], gate.name) end
  if #names > 0 then call('UNLINK', key) end
  add('ZREM', P .. 'openings', gate.name)
  if gate.parent then add('SREM', P .. 'gate-kids:' .. gate.parent.name, gate.name) end
end

local function prune_gates() -- some at a time, in rounds
  local names = call('ZRANGE', P .. 'gates', 0, most - 1)
  if #names == 0 then return end
  local round = call('HINCRBY', P .. 'numbers', 'round', 1)
  for i = 1, #names do
    local name = names[i]
    local gate = gate_of(name)
    local is_wanted = call('EXISTS', P .. 'gate-jobs:' .. name) == 1
    if not is_wanted then no_job_waits(gate) end
    if not is_wanted and is_idle(gate) then
      add('ZREM', P .. 'gates', name)
      call('UNLINK', P .. 'gate:' .. name)
    else
      add('ZADD', P .. 'gates', round, name)
    end
  end
end

local function forget_workers()
  local silent = call('ZRANGEBYSCORE', P .. 'presences', '-inf', num(lease_now), 'LIMIT', 0, most)
  for i = 1, #silent do
    add('ZREM', P .. 'presences', silent[i])
    add('HDEL', P .. 'said', silent[i])
  end
end

local function longest_lease()
  local longest = 0
  if lease_now < now then
    local said = call('HGETALL', P .. 'said')
    for i = 2, #said, 2 do longest = max(longest, tonumber(said[i]:match('^%S+ (%S+)'))) end
  end
  return longest
end

even_when_full()
forget_workers()
take_back()
free()
flush()
expire()
flush()
finish_batches()
prune()
flush()
prune_gates()
send_all()
local bodies = {}
if #ids > 0 then
  bodies = many('HMGET', P .. 'body', ids)
  for i = 1, #bodies do bodies[i] = bodies[i] or '' end
end
return { '[' .. table.concat(moved, ',') .. ']', bodies, num(now), num(longest_lease()) }
