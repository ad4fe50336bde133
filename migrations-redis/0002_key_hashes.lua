-- Schema 1 kept a client key's hash in its record alone. From 2 on there is an index of hashes, so that a hash is
-- refused the second time by one look, and in the same script that writes the record.
--
-- keys: {keys}rec:*
-- with: {keys}hashes

local hash = redis.call('HGET', KEYS[1], 'hash')
local id = redis.call('HGET', KEYS[1], 'id')
-- Values are JSON; a record without a hash is no key that could be used.
hash = hash and string.match(hash, '^"(%x+)"$')
id = id and string.match(id, '^"([^"]+)"$')
if not hash or not id or redis.call('HEXISTS', KEYS[2], hash) == 1 then return 0 end
redis.call('HSET', KEYS[2], hash, id)
return 1
