-- The first layout; see the table in README.md. There is nothing to change: a new store is written as it is, and
-- this file marks where the numbering begins.
return 0
