-- ARGV: time, ids (JSON). Dead jobs become ready. Answers R ready, N not dead, K key taken, M missing for each.

local ids, answers = cjson.decode(ARGV[2]), {}
load_rows(ids)

local function retry(id)
  local row = rows[id]
  if not row then return 'M' end
  if row[STATE] ~= DEAD then return 'N' end
  if row[KEY] and call('HSETNX', P .. 'keys', row[KEY], id) == 0 then return 'K' end
  local name = member(id, row)
  add('ZREM', P .. 'dead', name)
  if row[BATCH] then add('ZREM', P .. 'kept:dead:' .. row[BATCH], name) end
  move(row, READY)
  row[ATTEMPTS], row[SNOOZES], row[LOST] = 0, 0, 0
  row[DUE], row[FIRST_DUE], row[READY_AT] = now, now, now
  row[EXPIRES] = now + cjson.decode(call('HGET', P .. 'body', id):match('^[^\n]*'))[6]
  row[FINISHED], row[CANCEL], row[REASON] = false, false, ''
  changed[id] = row
  add('ZADD', P .. 'expiries', num(row[EXPIRES]), name)
  place(id, row)
  return 'R'
end

for i = 1, #ids do answers[i] = retry(ids[i]) end
flush()
return table.concat(answers)
