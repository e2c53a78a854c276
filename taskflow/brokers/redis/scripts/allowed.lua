-- What comes before all: whether the server lets this user do what the rest of the script can come to.
--
-- Nothing undoes what a script has changed when it is denied a command half way: rows would stand in no line, lanes in
-- no ring. So it asks before it changes anything, each time, for an ACL may be narrowed while workers run.

if redis.replicate_commands then redis.replicate_commands() end -- 6.2 can be told otherwise: TIME before a write

local P = KEYS[1]

-- Servers of before 7 can only be asked by trying. What was there stays, what is made here goes at the end.
local function tried(commands, key, is_draining)
  local hash, set, list = key .. ':hash', key .. ':set', key .. ':list'
  local how = {
    DEL = { key }, EXISTS = { key }, HDEL = { key, 'a' }, HGET = { key, 'a' }, HGETALL = { key },
    HINCRBY = { hash, 'a', 0 }, HKEYS = { key }, HMGET = { key, 'a' }, HSET = { hash, 'a', 0 },
    HSETNX = { hash, 'a', 0 }, LINDEX = { key, 0 }, LRANGE = { key, 0, 0 }, LTRIM = { key, 0, 0 },
    PEXPIRE = { key, 1 }, PTTL = { key }, PUBLISH = { key, '' }, RPUSH = { list, 'a' }, SADD = { set, 'a' },
    SET = { key, 'a', 'XX' }, SMEMBERS = { key }, SREM = { key, 'a' }, TIME = {}, UNLINK = { key },
    ZADD = { key, 'XX', 0, 'a' }, ZCOUNT = { key, 0, 0 }, ZPOPMIN = { key }, ZRANGE = { key, 0, 0 },
    ZRANGEBYSCORE = { key, 0, 0 }, ZREM = { key, 'a' }, ZREVRANGEBYSCORE = { key, 0, 0 }, ZSCORE = { key, 'a' },
  }
  local denied = {}
  local function try(command) -- false: no answer to that, as it is full, or a replica
    local answer = redis.pcall(command, unpack(how[command]))
    local said = type(answer) == 'table' and answer.err
    if not said then return true end
    local is_denied = said:find("executing the script can't", 1, true) or said:find('Unknown Redis command', 1, true)
    if is_denied then denied[#denied + 1] = command end
    return is_denied
  end
  if is_draining then redis.pcall('DEL', key) end -- as `even_when_full`
  for i = 1, #commands do
    if how[commands[i]] and not try(commands[i]) then return denied end -- the script hears it too, at its first write
  end
  redis.pcall('DEL', hash, set, list)
  return denied
end

local function denied_of(commands, is_draining) -- an error that names what to allow, or nil
  local check, key, denied = redis.acl_check_cmd, P .. 'nothing', {}
  if check then
    for i = 1, #commands do
      local is_known, is_allowed = pcall(check, commands[i], key, key, key)
      if not (is_known and is_allowed) then denied[#denied + 1] = commands[i] end
    end
  else
    denied = tried(commands, key, is_draining)
  end
  if #denied == 0 then return nil end
  return redis.error_reply('NOPERM on ~' .. P .. '* &' .. P .. '* needed: +' .. table.concat(denied, ' +'):lower())
end
