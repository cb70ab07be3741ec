"""Sends legal and illegal NBD requests through libnbd and checks each answer."""
import sys

import nbd

URI = sys.argv[1]
FAILED = []


def connect(structured=True):
    handle = nbd.NBD()
    handle.set_request_structured_replies(structured)
    handle.add_meta_context("base:allocation")
    handle.set_strict_mode(0)
    handle.connect_uri(URI)
    return handle


def expect(label, call, *names):
    """`call` must end with one of the errors in `names` ('ok': none)."""
    try:
        call()
        found = "ok"
    except nbd.Error as error:
        found = error.errno
    if found not in names:
        FAILED.append(f"{label}: expected {names}, found {found}")


h = connect()
size = h.get_size()
block = bytes([121]) * 4096
assert h.get_structured_replies_negotiated()
assert h.can_meta_context("base:allocation")
assert [h.get_block_size(i) for i in (0, 1, 2)] == [1, 4096, 32 << 20]

expect("read past the end", lambda: h.pread(512, size), "EINVAL")
expect("read over the end", lambda: h.pread(1024, size - 512), "EINVAL")
expect("write past the end", lambda: h.pwrite(b"x" * 512, size), "ENOSPC")
expect("write over the end", lambda: h.pwrite(b"x" * 1024, size - 512), "ENOSPC")
expect("trim past the end", lambda: h.trim(512, size), "EINVAL", "ENOSPC")
expect("zero past the end", lambda: h.zero(512, size), "ENOSPC")
expect("offset that overflows", lambda: h.pread(4096, (1 << 63) - 4096), "EINVAL")
expect("unknown flag on a read", lambda: h.pread(512, 0, 0x8000), "EINVAL")
expect("33 MiB read", lambda: h.pread(33 << 20, 0), "EINVAL", "EOVERFLOW")
expect("32 MiB read", lambda: h.pread(32 << 20, 0), "ok")
expect("write with FUA", lambda: h.pwrite(block, 0, nbd.CMD_FLAG_FUA), "ok")
expect("zero with NO_HOLE", lambda: h.zero(4096, 8192, nbd.CMD_FLAG_NO_HOLE), "ok")
expect("fast zero", lambda: h.zero(4096, 8192, nbd.CMD_FLAG_FAST_ZERO), "ok", "ENOTSUP")
expect("read with DF", lambda: h.pread_structured(4096, 0, lambda *a: 0, nbd.CMD_FLAG_DF), "ok")
expect("cache", lambda: h.cache(4096, 0), "ok")
expect("flush", h.flush, "ok")
expect("trim of everything", lambda: h.trim(size - 4096, 4096), "ok")
assert h.pread(4096, 0) == block, "the connection is usable and the data is there"

extents = []
h.block_status(size, 0, lambda name, offset, entries, error: extents.append((name, entries)))
assert extents and extents[0][0] == "base:allocation", extents

plain = connect(structured=False)
assert not plain.get_structured_replies_negotiated()
assert plain.pread(4096, 0) == block

a, b = connect(), connect()
assert a.can_multi_conn()
a.pwrite(b"m" * 4096, 8192)
a.flush()
assert b.pread(4096, 8192) == b"m" * 4096, "a flush on one connection covers the others"

o = nbd.NBD()
o.set_opt_mode(True)
o.connect_uri(URI)
names = []
o.opt_list(lambda name, description: names.append(name))
assert len(names) == 1, names
o.opt_info()
assert o.get_size() == size
o.set_export_name("no such export")
expect("GO of an unknown export", o.opt_go, "ENOENT")
o.opt_abort()

bufs = [nbd.Buffer(4096) for _ in range(64)]
cookies = [h.aio_pread(buf, i * 4096) for i, buf in enumerate(bufs)]
while h.aio_in_flight():
    h.poll(-1)
assert all(h.aio_command_completed(c) for c in cookies)
h.shutdown()

if FAILED:
    sys.exit("\n".join(FAILED))
print("all checks passed")
