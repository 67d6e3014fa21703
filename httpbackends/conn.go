package httpbackends

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nativebench/nativebench/internal/bench"
)

// arrivals knows when the kernel received what was read last from a socket. The
// kernel's receive stamp (SO_TIMESTAMPNS, socket(7)) is taken when the segment
// reaches the host, so it does not contain the time until this process got to
// run. A read that gathers several segments has the stamp of the last one.
type arrivals struct {
	clock stampClock

	first     int64 // arrival of the first bytes since begin that are an answer's, clock of bench.Now
	answered  bool  // under TLS: first is set
	last      int64 // arrival of the bytes read last
	unstamped int   // reads since begin that had to be timed by the user clock

	msg unix.Msghdr // of recv, here lest they be made anew
	iov unix.Iovec
	oob [64]byte
}

// begin starts a new account of arrivals.
func (a *arrivals) begin() { a.first, a.answered, a.last, a.unstamped = 0, false, 0, 0 }

// recv reads once into p, which is not empty, and never waits. call is
// syscall.Syscall or syscall.RawSyscall. Like recvmsg it returns 0 bytes at the
// end of the stream.
func (a *arrivals) recv(fd uintptr, p []byte, call func(trap, a1, a2, a3 uintptr) (uintptr, uintptr, syscall.Errno)) (int, syscall.Errno) {
	a.iov.Base = &p[0]
	a.iov.SetLen(len(p))
	a.msg.Iov, a.msg.Control = &a.iov, &a.oob[0]
	a.msg.SetIovlen(1)
	n, errno := uintptr(0), unix.EINTR
	for errno == unix.EINTR {
		a.msg.SetControllen(len(a.oob))
		n, _, errno = call(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&a.msg)), unix.MSG_DONTWAIT)
	}
	a.iov.Base = nil
	if errno != 0 {
		return 0, errno
	}
	if n > 0 {
		at, ok := a.clock.arrival(receiveStamp(a.oob[:a.msg.Controllen]))
		if !ok {
			a.unstamped++
		}
		if a.last = at; a.first == 0 {
			a.first = at
		}
	}
	return int(n), 0
}

// keepStamps keeps the kernel's receive stamps on until the file is closed. The
// kernel stamps what comes in only while some socket of the machine asks for
// it, and starts a moment after the first one did: without this the first reads
// of a connection, if no other is open, have no stamp. nil if that fails: the
// user clock serves, and is counted.
func keepStamps() *os.File {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
	return os.NewFile(uintptr(fd), "stamps")
}

// stampConn is a TCP connection that stamps what it reads.
type stampConn struct {
	*net.TCPConn
	arrivals
	raw syscall.RawConn

	// For recv, which is called by the poller and must not be a new closure
	// each time.
	recvFn func(fd uintptr) bool
	buf    []byte
	n      int
	errno  syscall.Errno
}

// dial connects to addr (host:port, IPv4 or IPv6) and turns receive stamps on.
// A kernel that has none leaves every read to the user clock.
func dial(ctx context.Context, addr string) (*stampConn, error) {
	d := net.Dialer{
		KeepAlive: 15 * time.Second,
		Control: func(_, _ string, raw syscall.RawConn) error {
			// Before the handshake, so that the first bytes are stamped.
			return raw.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
			})
		},
	}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	tcp := conn.(*net.TCPConn) // what network "tcp" gives
	raw, err := tcp.SyscallConn()
	if err != nil {
		tcp.Close()
		return nil, err
	}
	c := &stampConn{TCPConn: tcp, raw: raw, arrivals: arrivals{clock: newStampClock(readClocks)}}
	c.recvFn = c.tryRecv
	return c, nil
}

// Read reads as net.Conn says and sets last.
func (c *stampConn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c.buf = p
	err := c.raw.Read(c.recvFn)
	c.buf = nil
	if err == nil && c.errno != 0 {
		err = os.NewSyscallError("recvmsg", c.errno)
	}
	if err != nil {
		return 0, &net.OpError{Op: "read", Net: "tcp", Addr: c.RemoteAddr(), Err: err}
	}
	if c.n == 0 {
		return 0, io.EOF
	}
	return c.n, nil
}

// tryRecv reads once; false sends the caller to the poller until there is more.
func (c *stampConn) tryRecv(fd uintptr) bool {
	// Not RawSyscall, which costs a seventh less: with it, on a machine whose
	// cores were all busy, many more events came to share a stamp.
	c.n, c.errno = c.recv(fd, c.buf, syscall.Syscall)
	return c.errno != unix.EAGAIN
}

// peek tells what a read would find: nil if there are bytes, EAGAIN if there are
// none, and another error if there never will be.
func (c *stampConn) peek() error {
	var peeked error
	err := c.raw.Read(func(fd uintptr) bool {
		peeked = peek(int(fd))
		return true
	})
	return errors.Join(err, peeked)
}

// peek costs one system call.
func peek(fd int) error {
	var b [1]byte
	n, _, err := unix.Recvfrom(fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	if err == nil && n == 0 {
		return io.EOF
	}
	return err
}

// receiveStamp finds the kernel's stamp (ns of CLOCK_REALTIME) among the
// control messages; 0 if there is none.
func receiveStamp(oob []byte) int64 {
	for len(oob) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
		size := int(h.Len)
		if size < unix.SizeofCmsghdr || size > len(oob) {
			return 0
		}
		if h.Level == unix.SOL_SOCKET && h.Type == unix.SCM_TIMESTAMPNS && size >= unix.CmsgLen(int(unsafe.Sizeof(unix.Timespec{}))) {
			return (*unix.Timespec)(unsafe.Pointer(&oob[unix.CmsgLen(0)])).Nano()
		}
		oob = oob[min(unix.CmsgSpace(size-unix.CmsgLen(0)), len(oob)):]
	}
	return 0
}

// clocks is one reading of both clocks, as nearly at once as can be.
type clocks struct {
	mono int64 // of bench.Now
	wall int64 // of CLOCK_REALTIME
}

func readClocks() clocks {
	t := time.Now() // reads the wall clock and Go's monotonic clock back to back
	return clocks{mono: bench.At(t), wall: t.UnixNano()}
}

// stampClock turns stamps of CLOCK_REALTIME into stamps of bench.Now. The wall
// clock may be set or slewed at any time, so the offset is read anew for every
// stamp, and a stamp is believed only if it lies between the one before and
// now. A step that is smaller than that interval shifts at most the one stamp
// that it falls on.
type stampClock struct {
	read   func() clocks
	offset int64 // wall - mono, when read last
	last   int64 // latest arrival given, or when the clock was made
}

func newStampClock(read func() clocks) stampClock {
	now := read()
	return stampClock{read: read, offset: now.wall - now.mono, last: now.mono}
}

// arrival returns when bytes with the given kernel stamp came in; without a
// credible stamp that is now, and false.
func (c *stampClock) arrival(stamp int64) (at int64, ok bool) {
	// Two readings of the clocks differ by less, unless the wall clock was set
	// or this thread lost its core between the two clocks of one reading. What
	// a second reading repeats is no accident.
	const slack = 20_000
	now := c.read()
	before := c.offset
	if c.offset = now.wall - now.mono; abs(c.offset-before) > slack {
		now = c.read()
		c.offset = now.wall - now.mono
	}
	at = now.mono
	if stamp != 0 {
		// If the wall clock was set after the bytes came in, the offset before
		// is the right one.
		for _, offset := range [2]int64{c.offset, before} {
			if t := stamp - offset; t >= c.last-slack && t <= now.mono+slack {
				at, ok = min(max(t, c.last), now.mono), true
				break
			}
		}
	}
	c.last = max(at, c.last)
	return c.last, ok
}

func abs(x int64) int64 { return max(x, -x) }

// wire is a connection as http1.go uses it.
type wire struct {
	net.Conn
	loop   *loopConn // the same, if it is plain
	in     *arrivals // of the socket beneath
	peek   func() error
	opened int64 // how long opening it took, ns
}

// fresh reports whether another request can be sent: it is open and nobody has
// sent anything. Under TLS bytes may wait that are no answer to anything
// (session tickets).
func (w *wire) fresh() bool {
	err := w.peek()
	return errors.Is(err, unix.EAGAIN) || err == nil && w.loop == nil
}

// handshakeError is of TLS, on a connection that was accepted.
type handshakeError struct{ error }

func (e *handshakeError) Unwrap() error { return e.error }

// sealedConn is a connection under TLS. Not all that arrives on it is an answer:
// servers send session tickets after the handshake.
type sealedConn struct {
	*tls.Conn
	in *arrivals // of the socket beneath
}

// Read reads as net.Conn says and sets the arrival of the first bytes.
func (c *sealedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && !c.in.answered {
		c.in.first, c.in.answered = c.in.last, true
	}
	return n, err
}

// open connects, with TLS if conf is not nil, and else in the loop.
func open(ctx context.Context, addr string, conf *tls.Config, l *loop) (*wire, error) {
	t0 := bench.Now()
	tcp, err := dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	w := &wire{}
	if conf != nil {
		secured := tls.Client(tcp, conf)
		if err := secured.HandshakeContext(ctx); err != nil {
			tcp.Close()
			return nil, &handshakeError{err}
		}
		w.Conn, w.in, w.peek = &sealedConn{secured, &tcp.arrivals}, &tcp.arrivals, tcp.peek
	} else {
		if w.loop, err = l.adopt(tcp); err != nil {
			return nil, err
		}
		w.Conn, w.in, w.peek = w.loop, &w.loop.arrivals, w.loop.peek
	}
	w.opened = bench.Now() - t0
	return w, nil
}
