package httpbackends

import (
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nativebench/nativebench/internal/bench"
)

// loop waits for the plain connections of a backend in one epoll set and one
// goroutine, which runs the session's parser itself: an event costs one
// recvmsg and a share of one epoll_wait, where Go's poller takes two recvmsg,
// an epoll_wait and a goroutine's wake-up. (docs/decisions/0007)
//
// The set is level-triggered. So one read for each report is enough, and what
// that read leaves (more bytes, the end of the stream, a reset) is reported
// again.
type loop struct {
	epoll *os.File        // waited for through Go's poller
	raw   syscall.RawConn // of epoll
	done  chan struct{}   // closed when run has returned

	mu    sync.Mutex
	conns map[uint64]*loopConn // by id
	last  uint64               // id given last

	ready  [128]unix.EpollEvent // ready[:n] was reported
	n      int
	pace   pace                  // run and what it calls only
	pollFn func(fd uintptr) bool // poll
}

// newLoop starts a loop, which runs until close.
func newLoop() (*loop, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err == nil {
		err = unix.SetNonblock(fd, true) // or os.NewFile takes it for a plain file
	}
	if err != nil {
		return nil, fmt.Errorf("cannot make an epoll set: %w", err)
	}
	l := &loop{epoll: os.NewFile(uintptr(fd), "epoll"), done: make(chan struct{}), conns: map[uint64]*loopConn{}}
	if l.raw, err = l.epoll.SyscallConn(); err != nil {
		return nil, fmt.Errorf("cannot use an epoll set: %w", err)
	}
	l.pollFn = l.poll
	go l.run()
	return l, nil
}

// close ends the loop. Whatever still waits in it fails.
func (l *loop) close() error {
	err := l.epoll.Close()
	<-l.done
	return err
}

func (l *loop) run() {
	defer close(l.done)
	var batch [len(l.ready)]*loopConn
	for {
		if err := l.raw.Read(l.pollFn); err != nil {
			l.fail(fmt.Errorf("cannot wait for connections: %w", err))
			return
		}
		l.mu.Lock()
		for i, e := range l.ready[:l.n] {
			// An id is given once: a late report of a closed connection finds
			// none, whatever has its descriptor by now.
			batch[i] = l.conns[uint64(uint32(e.Fd))|uint64(uint32(e.Pad))<<32]
		}
		l.mu.Unlock()
		over := false
		for _, c := range batch[:l.n] {
			if c != nil && c.serve() {
				over = true
			}
		}
		// Who was woken runs now, on a machine of one core too.
		runtime.Gosched()
		// No rest where answers end: their ends often come together, and a
		// request is waiting to be sent for each.
		if now := bench.Now(); l.pace.rests(now, l.n) && !over {
			nap()
			if woke := bench.Now(); woke-now > lateNap {
				l.pace.stayAwake(woke)
			}
		}
	}
}

// poll takes up what is ready; false sends the caller to Go's poller until
// there is something.
func (l *loop) poll(fd uintptr) bool {
	// Raw, as it never waits.
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, fd, uintptr(unsafe.Pointer(&l.ready[0])), uintptr(len(l.ready)), 0, 0, 0)
	if errno != 0 {
		n = 0 // interrupted
	}
	l.n = int(n)
	return n > 0
}

// fail ends every wait, when there is no loop any more.
func (l *loop) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		c.mu.Lock()
		c.events = 0 // so that who waits from now on finds the loop closed
		c.end(err)
		c.mu.Unlock()
	}
}

// pace lets the loop rest between two reports where events come in so fast
// that several gather meanwhile, as network cards do. The kernel has stamped
// them by then: what a rest delays is the notice that an answer is over, and
// with it the next request. Where others want the core too, a thread that
// sleeps often gets less of it, and one that keeps its P through system calls
// leaves nobody to go on while it waits for the core: many more events came to
// share a stamp. So a rest that takes too long, or shared stamps, end both.
type pace struct {
	since   int64 // when counting began
	events  int   // reported since
	fast    bool  // the rate is worth a rest
	resting bool
	awake   int64 // until when it does not rest, whatever comes
	penalty int64 // what was added to awake last, ns
}

const (
	// restTime is short beside the time between two events of one stream, and
	// beside that of any answer.
	restTime = 200 * time.Microsecond
	// restRate is where two events gather during a rest, per second.
	restRate = int64(2 * time.Second / restTime)
	// paceTime is over how long the rate is taken.
	paceTime = 10 * time.Millisecond
	// lateNap is how long a rest lasts, in ns, where others want the core too.
	lateNap = 4 * int64(restTime)
	// A rest is not tried for minAwake after one that may have done harm, for
	// twice as long if that was after less than calmTime of rests, and so on.
	minAwake = 10 * int64(time.Millisecond)
	maxAwake = int64(time.Second)
	calmTime = 100 * int64(time.Millisecond)
)

// rests counts n events and says whether to rest.
func (p *pace) rests(now int64, n int) bool {
	p.events += n
	if passed := now - p.since; passed >= int64(paceTime) {
		p.fast = int64(p.events)*int64(time.Second)/passed >= restRate
		p.since, p.events = now, 0
	}
	p.resting = p.fast && now >= p.awake
	return p.resting
}

// stayAwake is called when a rest took too long, and when two events shared a
// stamp, which may be because of a rest.
func (p *pace) stayAwake(now int64) {
	switch {
	case now < p.awake:
		return // that was no rest
	case now < p.awake+calmTime:
		p.penalty = min(2*p.penalty, maxAwake)
	default:
		p.penalty = minAwake
	}
	p.awake = now + p.penalty
}

// nap sleeps for restTime. It keeps its P: to give it up and have it back costs
// more than the sleep saves.
func nap() {
	t := unix.NsecToTimespec(int64(restTime))
	_, _, _ = syscall.RawSyscall6(unix.SYS_CLOCK_NANOSLEEP, unix.CLOCK_MONOTONIC, 0, uintptr(unsafe.Pointer(&t)), 0, 0, 0)
}

// step works on what has come in: done tells that nothing more is waited for,
// shared that two events came with one stamp.
type step func() (done, shared bool)

// loopConn is a TCP connection outside Go's poller, which a loop waits for. It
// is used by one goroutine at a time; deadlines may be set by any.
type loopConn struct {
	arrivals
	loop          *loop
	fd            int // -1: closed
	id            uint64
	local, remote net.Addr

	stepping bool // Read does not wait
	readable bool // the loop found it so, and it was not read since

	mu      sync.Mutex
	events  uint32      // waited for in the set; 0: not in the set
	step    step        // called at each report; nil: nobody waits
	wake    chan error  // ends the wait
	expired bool        // the deadline has passed
	timer   *time.Timer // of the deadline; nil: none set, or passed
}

var _ net.Conn = (*loopConn)(nil)

// adopt takes a connection over from Go's poller, which would else wake up for
// every segment of it too. tcp is closed in any case.
func (l *loop) adopt(tcp *stampConn) (*loopConn, error) {
	defer tcp.Close() // of the descriptor, not of the connection
	c := &loopConn{arrivals: tcp.arrivals, loop: l, local: tcp.LocalAddr(), remote: tcp.RemoteAddr(), wake: make(chan error, 1)}
	var err error
	if e := tcp.raw.Control(func(fd uintptr) { c.fd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); e != nil {
		err = e
	}
	if err != nil {
		return nil, fmt.Errorf("cannot have a second descriptor of a connection: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	c.id = l.last
	l.conns[c.id] = c
	return c, nil
}

// serve does what is to be done when the loop has found c ready; over tells that
// it ended the wait.
func (c *loopConn) serve() (over bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.step == nil {
		// Nobody waits. It would be reported for ever.
		_ = c.set(0)
		return false
	}
	c.readable = true
	over, shared := c.step()
	if shared {
		c.loop.pace.stayAwake(bench.Now())
	}
	if over {
		c.end(nil)
	}
	return over
}

// end ends the wait, if there is one. c.mu is held.
func (c *loopConn) end(err error) {
	if c.step != nil {
		c.step = nil
		c.wake <- err
	}
}

// set has the loop wait for events (0: for none). c.mu is held. What is in the
// set stays there between waits, so that a request costs no call of its own.
func (c *loopConn) set(events uint32) error {
	op := unix.EPOLL_CTL_MOD
	switch {
	case events == c.events:
		return nil
	case events == 0:
		op = unix.EPOLL_CTL_DEL
	case c.events == 0:
		op = unix.EPOLL_CTL_ADD
	}
	var err error
	if e := c.loop.raw.Control(func(fd uintptr) {
		err = unix.EpollCtl(int(fd), op, c.fd, &unix.EpollEvent{Events: events, Fd: int32(c.id), Pad: int32(c.id >> 32)})
	}); e != nil {
		return fmt.Errorf("cannot wait for a connection: %w", e) // the loop is closed
	}
	if err == nil {
		c.events = events
	}
	return os.NewSyscallError("epoll_ctl", err)
}

// until waits for events, at each of which step is called in the loop, until it
// is done.
func (c *loopConn) until(events uint32, step step) error {
	c.mu.Lock()
	err := error(nil)
	if c.expired {
		err = os.ErrDeadlineExceeded
	} else {
		err = c.set(events)
	}
	if err == nil {
		c.step = step
	}
	c.mu.Unlock()
	if err == nil {
		err = <-c.wake
	}
	return err
}

// each calls step whenever bytes have come in, and before that once for those
// that were read already, until it is done. Inside it Read returns errAgain in
// place of waiting.
func (c *loopConn) each(step step) error {
	c.stepping, c.readable = true, false
	defer func() { c.stepping = false }()
	if done, _ := step(); done {
		return nil
	}
	return c.until(unix.EPOLLIN, step)
}

// once is the step of a wait for one report.
func once() (done, shared bool) { return true, false }

// Read reads as net.Conn says and sets last.
func (c *loopConn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	call, err := syscall.Syscall, error(nil)
	if c.stepping {
		if !c.readable {
			return 0, errAgain
		}
		c.readable = false
		if c.loop.pace.resting {
			call = syscall.RawSyscall
		}
	} else {
		err = c.late()
	}
	for err == nil {
		n, errno := c.recv(uintptr(c.fd), p, call)
		switch {
		case errno == unix.EAGAIN && c.stepping:
			return 0, errAgain
		case errno == unix.EAGAIN:
			err = c.until(unix.EPOLLIN, once)
		case errno != 0:
			err = os.NewSyscallError("recvmsg", errno)
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
	return 0, &net.OpError{Op: "read", Net: "tcp", Addr: c.remote, Err: err}
}

// Write writes as net.Conn says.
func (c *loopConn) Write(p []byte) (int, error) {
	done := 0
	err := c.late()
	for err == nil {
		var n int
		switch n, err = unix.Write(c.fd, p[done:]); err {
		case nil:
			if done += n; done == len(p) {
				return done, nil
			}
		case unix.EINTR:
			err = nil
		case unix.EAGAIN:
			err = c.until(unix.EPOLLOUT, once)
		default:
			err = os.NewSyscallError("write", err)
		}
	}
	return done, &net.OpError{Op: "write", Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
}

// Close closes the connection, which nobody may be reading or writing.
func (c *loopConn) Close() error {
	c.loop.mu.Lock()
	delete(c.loop.conns, c.id)
	c.loop.mu.Unlock()
	_ = c.SetDeadline(time.Time{})
	c.mu.Lock() // the loop is not reading it now, and will not from now on
	defer c.mu.Unlock()
	if c.fd < 0 {
		return net.ErrClosed
	}
	_ = c.set(0)
	err := unix.Close(c.fd)
	c.fd = -1
	return os.NewSyscallError("close", err)
}

func (c *loopConn) peek() error { return peek(c.fd) }

// LocalAddr returns our end.
func (c *loopConn) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns the other end.
func (c *loopConn) RemoteAddr() net.Addr { return c.remote }

// late returns an error if the deadline has passed.
func (c *loopConn) late() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.expired {
		return os.ErrDeadlineExceeded
	}
	return nil
}

// SetDeadline sets until when reads and writes may wait, as net.Conn says.
func (c *loopConn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	c.expired = false
	if t.IsZero() {
		return nil
	}
	wait := time.Until(t)
	if wait <= 0 {
		c.expire()
		return nil
	}
	var timer *time.Timer
	timer = time.AfterFunc(wait, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.timer == timer { // no other deadline was set meanwhile
			c.timer = nil
			c.expire()
		}
	})
	c.timer = timer
	return nil
}

// expire ends the wait under way, and those to come. c.mu is held.
func (c *loopConn) expire() {
	c.expired = true
	c.end(os.ErrDeadlineExceeded)
}

// SetReadDeadline is SetDeadline: a session does one thing at a time.
func (c *loopConn) SetReadDeadline(t time.Time) error { return c.SetDeadline(t) }

// SetWriteDeadline is SetDeadline.
func (c *loopConn) SetWriteDeadline(t time.Time) error { return c.SetDeadline(t) }
