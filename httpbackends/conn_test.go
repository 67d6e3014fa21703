package httpbackends

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nativebench/nativebench/internal/bench"
)

// socket is a connection of ours of either kind.
type socket struct {
	net.Conn
	*arrivals
	peek func() error
}

func (s *socket) idle() bool { return errors.Is(s.peek(), unix.EAGAIN) }

// kinds are the ways of ours to wait for a connection.
var kinds = []string{"loop", "poller"}

// peer returns a connection of ours and the other end.
func peer(t *testing.T, kind, addr string) (*socket, *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Skipf("cannot listen on %s: %v", addr, err)
	}
	defer l.Close()
	c, err := dial(context.Background(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s := &socket{c, &c.arrivals, c.peek}
	if kind == "loop" {
		c, err := testLoop(t).adopt(c)
		if err != nil {
			t.Fatal(err)
		}
		s = &socket{c, &c.arrivals, c.peek}
	}
	t.Cleanup(func() { s.Close() })
	other, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	return s, other.(*net.TCPConn)
}

// testLoop runs until the test ends.
func testLoop(t testing.TB) *loop {
	t.Helper()
	l, err := newLoop()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.close() })
	return l
}

// eachKind runs a test with both.
func eachKind(t *testing.T, test func(t *testing.T, kind string)) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) { test(t, kind) })
	}
}

// The stamp of what was read says when it came in: after the other side began
// to write it and, where the kernel gives stamps, before we began to read.
func TestStampIsOfArrival(t *testing.T) {
	for _, tc := range [][2]string{{"loop", "127.0.0.1:0"}, {"loop", "[::1]:0"}, {"poller", "127.0.0.1:0"}, {"poller", "[::1]:0"}} {
		t.Run(tc[0]+tc[1], func(t *testing.T) {
			c, other := peer(t, tc[0], tc[1])
			buf := make([]byte, 100)
			var last int64
			for i := range 20 {
				before := bench.Now()
				if _, err := other.Write([]byte("hello")); err != nil {
					t.Fatal(err)
				}
				// Readable is arrived; a peek leaves the bytes there.
				for c.idle() {
					time.Sleep(100 * time.Microsecond)
				}
				reading := bench.Now()
				c.begin()
				n, err := c.Read(buf)
				if err != nil || string(buf[:n]) != "hello" {
					t.Fatalf("read %q, %v", buf[:n], err)
				}
				after := bench.Now()
				if c.last < before || c.last > after || c.last < last || c.first != c.last {
					t.Errorf("stamp %d, first %d; written at %d, read at %d, stamp before %d", c.last, c.first, before, after, last)
				}
				last = c.last
				switch {
				case c.unstamped == 0 && c.last >= reading:
					t.Errorf("stamp %d is not before the read began at %d", c.last, reading)
				case c.unstamped == 1 && i == 0:
					t.Log("this kernel gives no receive stamps: the user clock is used")
				case c.unstamped > 1:
					t.Errorf("%d reads unstamped of 1", c.unstamped)
				}
			}
		})
	}
}

// While a backend is open, the first read of each connection is stamped, though
// no other connection is open.
func TestFirstReadIsStamped(t *testing.T) {
	newTestServer(t).open(t, nil)
	unstamped := func() int {
		c, other := peer(t, "loop", "127.0.0.1:0")
		defer c.Close()
		defer other.Close()
		if _, err := io.WriteString(other, "hello"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
		return c.unstamped
	}
	// The kernel begins a moment after it was asked to.
	for tries := 0; unstamped() > 0; tries++ {
		if tries == 1000 {
			t.Skip("this kernel gives no receive stamps")
		}
		time.Sleep(time.Millisecond)
	}
	n := 0
	for range 100 {
		n += unstamped()
	}
	if n > 0 {
		t.Errorf("%d first reads of 100 were not stamped", n)
	}
}

func TestReadEnds(t *testing.T) { eachKind(t, testReadEnds) }

func testReadEnds(t *testing.T, kind string) {
	c, other := peer(t, kind, "127.0.0.1:0")
	if n, err := c.Read(nil); n != 0 || err != nil {
		t.Errorf("an empty read: %d, %v", n, err)
	}
	if !c.idle() {
		t.Error("a quiet connection is not idle")
	}
	if err := c.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	var nerr net.Error
	if _, err := c.Read(make([]byte, 1)); !asNetError(err, &nerr) || !nerr.Timeout() {
		t.Errorf("after the deadline: %v", err)
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	other.Close()
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the other side closed: %v", err)
	}
	if c.idle() {
		t.Error("a closed connection is idle")
	}
	c.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("after Close: %v", err)
	}
}

func asNetError(err error, into *net.Error) bool {
	e, ok := err.(net.Error)
	*into = e
	return ok
}

// Over TLS the stamp is that of the segment that completed the record.
func TestStampOverTLS(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "hello")
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // of the refused certificate below
	srv.StartTLS()
	defer srv.Close()
	conf := srv.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	conf.NextProtos = []string{"http/1.1"}
	conf.ServerName = "example.com" // a name in the test certificate
	w, err := open(context.Background(), srv.Listener.Addr().String(), conf, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if w.opened <= 0 {
		t.Error("opening took no time")
	}
	w.in.begin()
	before := bench.Now()
	if _, err := io.WriteString(w, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	body, err := readResponse(newHTTP1(w, 4096))
	if err != nil || body != "hello" {
		t.Fatalf("%q, %v", body, err)
	}
	if w.in.first < before || w.in.last > bench.Now() {
		t.Errorf("stamps %d to %d", w.in.first, w.in.last)
	}
	// A certificate that nobody vouches for is refused.
	if w, err := open(context.Background(), srv.Listener.Addr().String(), &tls.Config{ServerName: "example.com"}, nil); err == nil {
		w.Close()
		t.Error("an unknown certificate was accepted")
	}
}

// Session tickets arrive before the answer and are none of it. Go's server sends
// them after the client's part of the handshake where it asks for a certificate,
// and to clients that keep sessions.
func TestFirstByteIsNoSessionTicket(t *testing.T) {
	answering := make(chan int64, 1)
	var tickets atomic.Int32
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(20 * time.Millisecond) // the tickets are read by then
		answering <- bench.Now()
		_, _ = io.WriteString(w, "hello")
	}))
	srv.TLS = &tls.Config{
		ClientAuth: tls.RequestClientCert,
		WrapSession: func(tls.ConnectionState, *tls.SessionState) ([]byte, error) {
			tickets.Add(1)
			return []byte("ticket"), nil
		},
	}
	srv.StartTLS()
	defer srv.Close()
	conf := srv.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	conf.NextProtos, conf.ServerName = []string{"http/1.1"}, "example.com"
	conf.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	w, err := open(context.Background(), srv.Listener.Addr().String(), conf, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for range 2 {
		w.in.begin()
		if _, err := io.WriteString(w, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if body, err := readResponse(newHTTP1(w, 4096)); err != nil || body != "hello" {
			t.Fatalf("%q, %v", body, err)
		}
		if at := <-answering; w.in.first < at || w.in.first > w.in.last {
			t.Errorf("first byte at %d, last at %d; the server began to answer at %d", w.in.first, w.in.last, at)
		}
	}
	if tickets.Load() == 0 {
		t.Error("the server sent no ticket")
	}
}

// The wall clock may jump at any time; the stamps do not.
func TestStampClock(t *testing.T) {
	const s = 1_000_000_000
	type reading struct {
		mono, offset int64 // the clocks at the read, the wall clock being mono + offset
		arrived      int64 // true arrival on the monotonic clock; 0: no kernel stamp
		stampOffset  int64 // offset when the segment came in
		want         int64
		ok           bool
	}
	for name, readings := range map[string][]reading{
		"steady":               {{100 * s, 7 * s, 99 * s, 7 * s, 99 * s, true}, {101 * s, 7 * s, 100 * s, 7 * s, 100 * s, true}},
		"no stamp":             {{100 * s, 7 * s, 0, 0, 100 * s, false}, {101 * s, 7 * s, 100*s + 5, 7 * s, 100*s + 5, true}},
		"set back before":      {{100 * s, 7 * s, 99 * s, 7 * s, 99 * s, true}, {101 * s, 2 * s, 100 * s, 2 * s, 100 * s, true}},
		"set forward before":   {{100 * s, 7 * s, 99 * s, 7 * s, 99 * s, true}, {101 * s, 70 * s, 100 * s, 70 * s, 100 * s, true}},
		"set back in between":  {{100 * s, 7 * s, 99 * s, 7 * s, 99 * s, true}, {101 * s, 2 * s, 100 * s, 7 * s, 100 * s, true}},
		"set on in between":    {{100 * s, 7 * s, 99 * s, 7 * s, 99 * s, true}, {101 * s, 70 * s, 100 * s, 7 * s, 100 * s, true}},
		"slewed":               {{100 * s, 7 * s, 99 * s, 7 * s, 99 * s, true}, {101 * s, 7*s + 500_000, 100 * s, 7*s + 500_000, 100 * s, true}},
		"in the future":        {{100 * s, 7 * s, 130 * s, 7 * s, 100 * s, false}},
		"long ago":             {{100 * s, 7 * s, 5 * s, 7 * s, 100 * s, false}},
		"before the last one":  {{100 * s, 7 * s, 99 * s, 7 * s, 99 * s, true}, {101 * s, 7 * s, 98 * s, 7 * s, 101 * s, false}},
		"a hair in the future": {{100 * s, 7 * s, 100*s + 100, 7 * s, 100 * s, true}},
	} {
		t.Run(name, func(t *testing.T) {
			now := clocks{mono: 90 * s, wall: 90*s + readings[0].offset}
			c := newStampClock(func() clocks { return now })
			for i, r := range readings {
				now = clocks{mono: r.mono, wall: r.mono + r.offset}
				stamp := int64(0)
				if r.arrived != 0 {
					stamp = r.arrived + r.stampOffset
				}
				if at, ok := c.arrival(stamp); at != r.want || ok != r.ok {
					t.Errorf("reading %d: got %d, %v; want %d, %v", i, at, ok, r.want, r.ok)
				}
			}
		})
	}
}

// A thread that loses its core between the two clocks of one reading does not
// shift the stamps.
func TestStampClockInterrupted(t *testing.T) {
	const s, offset = 1_000_000_000, 7_000_000_000
	readings := []clocks{{90 * s, 90*s + offset}, {100 * s, 100*s + offset - 4_000_000}, {100*s + 100, 100*s + 100 + offset}}
	c := newStampClock(func() clocks {
		r := readings[0]
		readings = readings[1:]
		return r
	})
	if at, ok := c.arrival(99*s + offset); at != 99*s || !ok {
		t.Errorf("got %d, %v; want %d", at, ok, 99*s)
	}
}

func FuzzReceiveStamp(f *testing.F) {
	f.Add([]byte{})
	f.Add(controlMessage(unix.SOL_SOCKET, unix.SCM_TIMESTAMPNS, 1, 2))
	f.Add(append(controlMessage(unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 0, 0), controlMessage(unix.SOL_SOCKET, unix.SCM_TIMESTAMPNS, 1, 2)...))
	f.Add(controlMessage(unix.SOL_SOCKET, unix.SCM_TIMESTAMPNS, 1, 2)[:20])
	f.Fuzz(func(_ *testing.T, oob []byte) { receiveStamp(oob) })
}

func controlMessage(level, kind int32, sec, nsec uint64) []byte {
	b := make([]byte, unix.CmsgSpace(16))
	binary.NativeEndian.PutUint64(b, uint64(unix.CmsgLen(16)))
	binary.NativeEndian.PutUint32(b[8:], uint32(level))
	binary.NativeEndian.PutUint32(b[12:], uint32(kind))
	binary.NativeEndian.PutUint64(b[16:], sec)
	binary.NativeEndian.PutUint64(b[24:], nsec)
	return b
}

func TestReceiveStamp(t *testing.T) {
	stamp := controlMessage(unix.SOL_SOCKET, unix.SCM_TIMESTAMPNS, 3, 4)
	other := controlMessage(unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 0, 0)
	for name, tc := range map[string]struct {
		oob  []byte
		want int64
	}{
		"none":      {nil, 0},
		"one":       {stamp, 3_000_000_004},
		"second":    {append(append([]byte{}, other...), stamp...), 3_000_000_004},
		"other":     {other, 0},
		"cut short": {stamp[:24], 0},
	} {
		if got := receiveStamp(tc.oob); got != tc.want {
			t.Errorf("%s: got %d, want %d", name, got, tc.want)
		}
	}
}

// Reading allocates nothing.
func TestReadAllocates(t *testing.T) { eachKind(t, testReadAllocates) }

func testReadAllocates(t *testing.T, kind string) {
	c, other := peer(t, kind, "127.0.0.1:0")
	msg, buf := []byte("hello"), make([]byte, 100)
	allocs := testing.AllocsPerRun(200, func() {
		if _, err := other.Write(msg); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(buf); err != nil {
			t.Fatal(err)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations per read", allocs)
	}
}
