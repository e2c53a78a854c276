-- ARGV: time, ids (JSON). Answers C cancelled, R requested, F final, M missing for each.

local ids, answers = cjson.decode(ARGV[2]), {}
even_when_full()
load_rows(ids)
for i = 1, #ids do
  local id = ids[i]
  local row = rows[id]
  if not row then
    answers[i] = 'M'
  elseif row[STATE] > RUNNING then
    answers[i] = 'F'
  elseif row[STATE] == RUNNING then
    row[CANCEL] = true
    changed[id] = row
    local claims = P .. 'claims:' .. row[WORKER]
    call('HSET', claims, id, (call('HGET', claims, id):gsub('%d$', '1')))
    answers[i] = 'R'
  else
    leave_line(id, row)
    finish(id, row, CANCELLED)
    answers[i] = 'C'
  end
end
flush()
return table.concat(answers)
