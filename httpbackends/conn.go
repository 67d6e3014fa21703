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

// stampConn is a TCP connection that knows when the kernel received what was
// read last. The kernel's receive stamp (SO_TIMESTAMPNS, socket(7)) is taken
// when the segment reaches the host, so it does not contain the time until
// this process got to run. A read that gathers several segments has the stamp
// of the last one.
type stampConn struct {
	*net.TCPConn
	raw   syscall.RawConn
	clock stampClock

	first     int64 // arrival of the first bytes since begin that are an answer's, clock of bench.Now
	answered  bool  // under TLS: first is set
	last      int64 // arrival of the bytes read last
	unstamped int   // reads since begin that had to be timed by the user clock

	// For recv, which is called by the poller and must not be a new closure
	// each time.
	recvFn func(fd uintptr) bool
	buf    []byte
	n      int
	err    error
	oob    [64]byte
	oobn   int
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
	c := &stampConn{TCPConn: tcp, raw: raw, clock: newStampClock(readClocks)}
	c.recvFn = c.recv
	return c, nil
}

// begin starts a new account of arrivals.
func (c *stampConn) begin() { c.first, c.answered, c.last, c.unstamped = 0, false, 0, 0 }

// Read reads as net.Conn says and sets last.
func (c *stampConn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c.buf, c.n, c.err, c.oobn = p, 0, nil, 0
	err := c.raw.Read(c.recvFn)
	c.buf = nil
	if err == nil {
		err = c.err
	}
	if err != nil {
		return 0, &net.OpError{Op: "read", Net: "tcp", Addr: c.RemoteAddr(), Err: err}
	}
	if c.n == 0 {
		return 0, io.EOF
	}
	at, ok := c.clock.arrival(receiveStamp(c.oob[:c.oobn]))
	if !ok {
		c.unstamped++
	}
	if c.last = at; c.first == 0 {
		c.first = at
	}
	return c.n, nil
}

// recv reads once; false sends the caller to the poller until there is more.
func (c *stampConn) recv(fd uintptr) bool {
	iov := unix.Iovec{Base: &c.buf[0]}
	iov.SetLen(len(c.buf))
	msg := unix.Msghdr{Iov: &iov, Control: &c.oob[0]}
	msg.SetIovlen(1)
	for {
		msg.SetControllen(len(c.oob))
		// Not RawSyscall, which costs a seventh less: with it, on a machine whose
		// cores were all busy, many more events came to share a stamp.
		n, _, errno := syscall.Syscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&msg)), unix.MSG_DONTWAIT)
		switch errno {
		case 0:
			c.n, c.oobn = int(n), int(msg.Controllen)
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		default:
			c.err = os.NewSyscallError("recvmsg", errno)
		}
		return true
	}
}

// idle reports whether the connection is open and nobody has sent anything. It
// costs one system call.
func (c *stampConn) idle() bool { return errors.Is(c.peek(), unix.EAGAIN) }

// open reports whether the connection is open, with bytes to be read or not.
func (c *stampConn) open() bool {
	err := c.peek()
	return err == nil || errors.Is(err, unix.EAGAIN)
}

// peek returns nil if there are bytes to be read, EAGAIN if there are none, and
// another error if there never will be.
func (c *stampConn) peek() error {
	var peeked error
	err := c.raw.Read(func(fd uintptr) bool {
		var b [1]byte
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if peeked = err; err == nil && n == 0 {
			peeked = io.EOF
		}
		return true
	})
	return errors.Join(err, peeked)
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
	net.Conn            // encrypted where the endpoint says https
	tcp      *stampConn // beneath
	opened   int64      // how long opening it took, ns
}

// fresh reports whether another request can be sent. Under TLS bytes may wait
// that are no answer to anything (session tickets).
func (w *wire) fresh() bool {
	if w.Conn == net.Conn(w.tcp) {
		return w.tcp.idle()
	}
	return w.tcp.open()
}

// sealedConn is a connection under TLS. Not all that arrives on it is an answer:
// servers send session tickets after the handshake.
type sealedConn struct {
	*tls.Conn
	tcp *stampConn // beneath
}

// Read reads as net.Conn says and sets the arrival of the first bytes.
func (c *sealedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && !c.tcp.answered {
		c.tcp.first, c.tcp.answered = c.tcp.last, true
	}
	return n, err
}

// open connects, with TLS if conf is not nil.
func open(ctx context.Context, addr string, conf *tls.Config) (*wire, error) {
	t0 := bench.Now()
	tcp, err := dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	w := &wire{Conn: tcp, tcp: tcp}
	if conf != nil {
		secured := tls.Client(tcp, conf)
		if err := secured.HandshakeContext(ctx); err != nil {
			tcp.Close()
			return nil, err
		}
		w.Conn = &sealedConn{secured, tcp}
	}
	w.opened = bench.Now() - t0
	return w, nil
}
