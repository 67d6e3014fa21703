package httpbackends

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// looped returns a connection in l and the other end.
func looped(t *testing.T, l *loop) (*loopConn, *net.TCPConn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	w, err := open(context.Background(), listener.Addr().String(), nil, l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	other, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	return w.loop, other.(*net.TCPConn)
}

// collect reads to the end in the loop.
func (c *loopConn) collect() (got string, err error) {
	buf := make([]byte, 16)
	waited := c.each(func() (done, shared bool) {
		var n int
		n, err = c.Read(buf)
		got += string(buf[:n])
		return err != nil && err != errAgain, false
	})
	if waited != nil {
		err = waited
	}
	return got, err
}

// What came before the end of a connection is read, and then its end is seen,
// whether both are there when the loop looks or not.
func TestEnds(t *testing.T) {
	const words = "more than one read of sixteen bytes takes"
	for _, tc := range []struct {
		name  string
		reset bool
		want  error
	}{{"FIN", false, io.EOF}, {"RST", true, unix.ECONNRESET}} {
		for _, before := range []bool{true, false} {
			for _, how := range []string{"in the loop", "by the goroutine", "poller"} {
				t.Run(fmt.Sprint(tc.name, " before=", before, " ", how), func(t *testing.T) {
					kind := "loop"
					if how == "poller" {
						kind = how
					}
					c, other := peer(t, kind, "127.0.0.1:0")
					finish := func() {
						if _, err := io.WriteString(other, words); err != nil {
							t.Error(err)
						}
						if tc.reset {
							_ = other.SetLinger(0)
						}
						other.Close()
					}
					if before {
						finish()
						for c.idle() {
							time.Sleep(100 * time.Microsecond)
						}
					} else {
						time.AfterFunc(5*time.Millisecond, finish)
					}
					var got string
					var err error
					if how == "in the loop" {
						got, err = c.Conn.(*loopConn).collect()
					} else {
						var b bytes.Buffer
						if _, err = io.CopyBuffer(&b, struct{ io.Reader }{c}, make([]byte, 16)); err == nil {
							err = io.EOF
						}
						got = b.String()
					}
					if got != words || !errors.Is(err, tc.want) {
						t.Errorf("read %q, %v; want %q, %v", got, err, words, tc.want)
					}
				})
			}
		}
	}
}

// A deadline ends the wait under way and those to come, and no others.
func TestLoopDeadline(t *testing.T) {
	c, other := looped(t, testLoop(t))
	late := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v", what, err)
		}
	}
	buf := make([]byte, 8)
	for range 20 { // cleared, whether its time came just before or not
		_ = c.SetReadDeadline(time.Now().Add(50 * time.Microsecond))
		time.Sleep(50 * time.Microsecond)
		_ = c.SetReadDeadline(time.Time{})
		if _, err := io.WriteString(other, "hello"); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(buf); err != nil || string(buf[:n]) != "hello" {
			t.Fatalf("read %q, %v", buf[:n], err)
		}
	}
	_ = c.SetDeadline(time.Now().Add(time.Millisecond))
	_, err := c.Read(buf)
	late("a read under way", err)
	_, err = c.Read(buf)
	late("a read after it", err)
	_, err = c.Write(buf)
	late("a write after it", err)
	_ = c.SetDeadline(time.Time{})
	time.AfterFunc(time.Millisecond, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	_, err = c.collect()
	late("a wait in the loop", err)
	_, err = c.collect()
	late("a wait after it", err)
}

// A write that the other side does not take at once waits, is whole in the end,
// and can be ended.
func TestLoopWrite(t *testing.T) {
	c, other := looped(t, testLoop(t))
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	read := make(chan []byte)
	go func() {
		b := make([]byte, len(want))
		_, _ = io.ReadFull(other, b)
		read <- b
	}()
	if n, err := c.Write(want); n != len(want) || err != nil {
		t.Fatal(n, err)
	}
	if !bytes.Equal(<-read, want) {
		t.Error("other bytes came than were sent")
	}
	// And what is answered is read: the loop waits for the right thing again.
	if _, err := io.WriteString(other, "hello"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 8)
	if n, err := c.Read(buf); err != nil || string(buf[:n]) != "hello" {
		t.Fatalf("read %q, %v", buf[:n], err)
	}
	time.AfterFunc(5*time.Millisecond, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	if n, err := c.Write(want); n == len(want) || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a write that nobody reads: %d, %v", n, err)
	}
	_ = c.SetDeadline(time.Time{})
	other.Close()
	for err := error(nil); err == nil; {
		if _, err = c.Write(want); err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("a write to a closed connection: %v", err)
		}
	}
}

// What nobody waits for does not keep the loop busy, and is read later.
func TestLoopLeavesAlone(t *testing.T) {
	for _, end := range []string{"bytes", "FIN", "RST"} {
		t.Run(end, func(t *testing.T) {
			l := testLoop(t)
			c, other := looped(t, l)
			exchange := func(c *loopConn, other net.Conn) {
				t.Helper()
				time.AfterFunc(time.Millisecond, func() { _, _ = io.WriteString(other, "a") })
				if n, err := c.Read(make([]byte, 1)); n != 1 || err != nil {
					t.Fatal(n, err)
				}
			}
			exchange(c, other) // now it is in the set
			want := error(nil)
			switch end {
			case "bytes":
				_, _ = io.WriteString(other, "b")
			case "FIN":
				other.Close()
				want = io.EOF
			case "RST":
				_ = other.SetLinger(0)
				other.Close()
				want = unix.ECONNRESET
			}
			for inSet := true; inSet; time.Sleep(100 * time.Microsecond) {
				c.mu.Lock()
				inSet = c.events != 0
				c.mu.Unlock()
			}
			// The others go on.
			beside, its := looped(t, l)
			exchange(beside, its)
			if _, err := c.Read(make([]byte, 8)); !errors.Is(err, want) {
				t.Errorf("read: %v, want %v", err, want)
			}
		})
	}
}

// Connections that come and go while others are read neither disturb those nor
// get what is theirs, whose descriptors they have after them.
func TestLoopReusesDescriptors(t *testing.T) {
	l := testLoop(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { // an echo, until the other side has enough
				defer conn.Close()
				_, _ = io.Copy(struct{ io.Writer }{conn}, struct{ io.Reader }{conn}) // without the pipes of splice
			})
		}
	})
	descriptors := func() int {
		names, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	before := descriptors()
	var clients sync.WaitGroup
	for i := range 8 {
		clients.Go(func() {
			for j := range 50 {
				w, err := open(context.Background(), listener.Addr().String(), nil, l)
				if err != nil {
					t.Error(err)
					return
				}
				want := fmt.Sprintf("client %d, connection %d", i, j)
				if _, err := io.WriteString(w, want); err != nil {
					t.Error(err)
				}
				if j%3 == 0 { // closes with bytes under way
					w.Close()
					continue
				}
				var got string
				if err := w.loop.each(func() (done, shared bool) {
					buf := make([]byte, 5)
					n, err := w.Read(buf)
					got += string(buf[:n])
					return len(got) >= len(want) || err != nil && err != errAgain, false
				}); err != nil || got != want {
					t.Errorf("got %q, %v; want %q", got, err, want)
				}
				if err := w.Close(); err != nil {
					t.Error(err)
				}
				if err := w.Close(); err == nil {
					t.Error("closed twice")
				}
			}
		})
	}
	clients.Wait()
	listener.Close()
	serving.Wait()
	if len(l.conns) != 0 {
		t.Errorf("%d connections are kept", len(l.conns))
	}
	if after := descriptors(); after >= before { // the listener is closed
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

// Many connections wait in one loop.
func TestLoopOfMany(t *testing.T) {
	l := testLoop(t)
	const n = 400
	var wg sync.WaitGroup
	others := make([]net.Conn, n)
	for i := range n {
		c, other := looped(t, l)
		others[i] = other
		wg.Go(func() {
			if got, err := c.collect(); err != io.EOF || got != fmt.Sprintf("%d one two three four", i) {
				t.Errorf("connection %d: %q, %v", i, got, err)
			}
		})
	}
	for i, other := range others {
		fmt.Fprint(other, i)
	}
	for _, word := range []string{" one", " two", " three", " four"} {
		for _, other := range others {
			_, _ = io.WriteString(other, word)
		}
	}
	for _, other := range others {
		other.Close()
	}
	wg.Wait()
}

// A loop that is closed leaves nobody waiting.
func TestLoopClose(t *testing.T) {
	l, err := newLoop()
	if err != nil {
		t.Fatal(err)
	}
	a, _ := looped(t, l)
	b, _ := looped(t, l)
	ended := make(chan error, 2)
	go func() { _, err := a.Read(make([]byte, 1)); ended <- err }()
	go func() { _, err := b.collect(); ended <- err }()
	for _, c := range []*loopConn{a, b} {
		for waits := false; !waits; time.Sleep(100 * time.Microsecond) {
			c.mu.Lock()
			waits = c.step != nil
			c.mu.Unlock()
		}
	}
	if err := l.close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := <-ended; err == nil || !strings.Contains(err.Error(), "use of closed file") {
			t.Errorf("who waited: %v", err)
		}
	}
	if _, err := a.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "use of closed file") {
		t.Errorf("who came later: %v", err)
	}
	if err := l.close(); err == nil {
		t.Error("closed twice")
	}
	for _, c := range []*loopConn{a, b} {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// An event costs no memory.
func TestLoopAllocates(t *testing.T) {
	c, other := looped(t, testLoop(t))
	came, done := make(chan int, 1), make(chan error)
	buf, msg := make([]byte, 100), []byte("hello")
	go func() {
		done <- c.each(func() (over, shared bool) {
			n, err := c.Read(buf)
			if n > 0 {
				came <- n
			}
			return err == io.EOF, false
		})
	}()
	n := testing.AllocsPerRun(200, func() {
		if _, err := other.Write(msg); err != nil {
			t.Fatal(err)
		}
		<-came
	})
	other.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n != 0 {
		t.Errorf("%v allocations per event", n)
	}
}

// The loop rests where events come in fast, and not elsewhere.
func TestPace(t *testing.T) {
	const ms = int64(time.Millisecond)
	type batch struct {
		at    int64 // ns
		n     int
		rests bool
	}
	for name, batches := range map[string][]batch{
		"slow":             {{100 * ms, 1, false}, {105 * ms, 40, false}, {110 * ms, 40, false}, {120 * ms, 90, false}},
		"fast":             {{100 * ms, 1, false}, {109 * ms, 100, false}, {110 * ms, 1, true}, {111 * ms, 1, true}, {120 * ms, 99, true}},
		"fast, then slow":  {{100 * ms, 1, false}, {110 * ms, 100, true}, {115 * ms, 1, true}, {120 * ms, 1, false}, {130 * ms, 1, false}},
		"fast, then quiet": {{100 * ms, 1, false}, {110 * ms, 100, true}, {5000 * ms, 100, false}},
	} {
		p := pace{}
		for i, b := range batches {
			if got := p.rests(b.at, b.n); got != b.rests {
				t.Errorf("%s: batch %d rests: %v", name, i, got)
			}
		}
	}
	// What goes wrong again and again is tried ever less often.
	p := pace{}
	at := 100 * ms
	var waits []int64
	for range 12 {
		for at += ms; !p.rests(at, 1000); at += ms {
		}
		if len(waits) > 0 && at < p.awake {
			t.Errorf("rests %d ms before it may", (p.awake-at)/ms)
		}
		p.stayAwake(at)
		p.stayAwake(at) // counts once
		waits = append(waits, (p.awake-at)/ms)
	}
	if want := []int64{10, 20, 40, 80, 160, 320, 640, 1000, 1000, 1000, 1000, 1000}; !slices.Equal(waits, want) {
		t.Errorf("waits %v ms, want %v", waits, want)
	}
	at = p.awake + calmTime
	if p.stayAwake(at); p.awake-at != minAwake {
		t.Errorf("after a calm time it waits %d ms", (p.awake-at)/ms)
	}
}

// A loop that finds events which share a stamp does not rest for a while.
func TestSharedStampsWake(t *testing.T) {
	srv := newTestServer(t)
	b := srv.open(t, nil).(*backend)
	s := openSession(t, b)
	first := make(chan struct{})
	srv.set(func(c *call) {
		c.write("%s%s", streamHead, chunk(event("a", 1)))
		<-first
		c.write("%s%s%s0\r\n\r\n", chunk(event("b", 2)+event("c", 3)+event("d", 4)), chunk(last("length", 4)), chunk(doneMark))
	})
	go func() { // the loop waits, so it is the loop that reads what follows
		for waits := false; !waits; time.Sleep(100 * time.Microsecond) {
			s.conn.loop.mu.Lock()
			waits = s.conn.loop.step != nil && s.conn.loop.stepping
			s.conn.loop.mu.Unlock()
		}
		close(first)
	}()
	ask(t, s, testRequest(true))
	b.Close() // for the race detector: the loop is over
	if b.loop.pace.awake == 0 {
		t.Error("shared stamps were not noticed")
	}
}

// halting is a reader that has no bytes before and after each piece, as soon as
// it may say so.
type halting struct {
	pieces
	may, turn bool
}

func (h *halting) Read(p []byte) (int, error) {
	if h.turn = !h.turn; h.may && h.turn {
		return 0, errAgain
	}
	return h.pieces.Read(p)
}

// A body goes on where it was left, wherever its bytes ran out.
func TestHTTP1GoesOn(t *testing.T) {
	for _, tc := range responses {
		if len(tc.response) > 1000 {
			continue
		}
		r := &halting{pieces: slices.Collect(slices.Chunk([]byte(tc.response), 1))}
		h := newHTTP1(r, 4096)
		var body strings.Builder
		err := h.head()
		again := 0
		for r.may = true; err == nil || err == errAgain; {
			var p []byte
			if p, err = h.body(); err == errAgain {
				again++
			}
			body.Write(p)
		}
		if err == io.EOF {
			err = nil
		}
		if !errors.Is(err, tc.err) || (err == nil) != (tc.err == nil) || body.String() != tc.body || err == nil && h.keepAlive != tc.keepAlive {
			t.Errorf("%s: body %q, error %v; want %q, %v", tc.name, body.String(), err, tc.body, tc.err)
		}
		if tc.body != "" && again == 0 {
			t.Errorf("%s: its bytes never ran out", tc.name)
		}
	}
}
