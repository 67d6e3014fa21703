//go:build linux

package main

import (
	"bytes"
	"container/heap"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nativebench/nativebench/internal/bench"
)

// served is what the server knows of one request: the truth.
type served struct {
	ID       int
	Received int64   // kernel's receive stamp of the request, clock of bench.Now
	Writes   []int64 // the instant before each write, one per token
}

// prefix begins every prompt; the request's number follows.
const prefix = "request "

// server answers as llama-server does, one thread over one epoll set: what it
// stamps must not wait for a scheduler.
type server struct {
	load
	epoll, listener int
	peers           map[int]*peer
	due             schedule
	chunks          [][]byte // chunks[k] carries token k
	log             []served
}

// peer is one connection.
type peer struct {
	fd       int
	in       []byte
	received int64
	at       int // in server.log
	next     int // token
	due      int64
	open     bool
}

// schedule is a heap of the peers that have a token to come, by due time.
type schedule []*peer

func (s schedule) Len() int           { return len(s) }
func (s schedule) Less(i, j int) bool { return s[i].due < s[j].due }
func (s schedule) Swap(i, j int)      { s[i], s[j] = s[j], s[i] }
func (s *schedule) Push(x any)        { *s = append(*s, x.(*peer)) }
func (s *schedule) Pop() any {
	last := (*s)[len(*s)-1]
	*s = (*s)[:len(*s)-1]
	return last
}

// serve prints its port, serves until standard input ends, and then writes its
// log to standard output.
func serve(l load) error {
	runtime.LockOSThread()
	debug.SetGCPercent(-1) // no collection between a stamp and its write
	// Timers of 1 ns slack in place of 50 us.
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot have exact timers: %w", err)
	}
	s := &server{load: l, peers: map[int]*peer{}, log: make([]served, 0, l.Streams*l.Rounds)}
	for k := range l.Tokens {
		s.chunks = append(s.chunks, l.chunk(k))
	}
	port, err := s.listen()
	if err != nil {
		return err
	}
	fmt.Println(port)
	if err := s.loop(); err != nil {
		return err
	}
	return gob.NewEncoder(os.Stdout).Encode(s.log)
}

// chunk is what is written for token k, head and end mark with the first and last.
func (l load) chunk(k int) []byte {
	var b bytes.Buffer
	if k == 0 {
		b.WriteString("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
	}
	put := func(data string) { fmt.Fprintf(&b, "%x\r\ndata: %s\n\n\r\n", len(data)+8, data) }
	timings := fmt.Sprintf(`"timings":{"cache_n":0,"prompt_n":101,"prompt_ms":20.015,"prompt_per_token_ms":0.198168,"prompt_per_second":5046.215338,"predicted_n":%d,"predicted_ms":%.3f,"predicted_per_token_ms":%.3f,"predicted_per_second":%.3f}`,
		k+1, float64(k+1)*1e3/l.Rate, 1e3/l.Rate, l.Rate)
	put(`{"choices":[{"text":" word","index":0,"logprobs":null,"finish_reason":null}],"created":1700000000,"model":"m","system_fingerprint":"b1-abc","object":"text_completion","id":"chatcmpl-0123456789abcdefghijklmnopqrstuv",` + timings + `}`)
	if k == l.Tokens-1 {
		put(fmt.Sprintf(`{"choices":[{"text":"","index":0,"logprobs":null,"finish_reason":"length"}],"created":1700000000,"model":"m","object":"text_completion","usage":{"completion_tokens":%d,"prompt_tokens":101,"total_tokens":%d},%s}`, k+1, k+102, timings))
		put("[DONE]")
		b.WriteString("0\r\n\r\n")
	}
	return b.Bytes()
}

func (s *server) listen() (port int, err error) {
	if s.listener, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return 0, fmt.Errorf("cannot make a socket: %w", err)
	}
	// On the listener, from which every connection has it: a request may come
	// before its connection is accepted.
	if err = unix.SetsockoptInt(s.listener, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		return 0, fmt.Errorf("this kernel gives no receive stamps: %w", err)
	}
	if err = unix.Bind(s.listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return 0, fmt.Errorf("cannot bind to 127.0.0.1: %w", err)
	}
	if err = unix.Listen(s.listener, 4096); err != nil {
		return 0, fmt.Errorf("cannot listen: %w", err)
	}
	addr, err := unix.Getsockname(s.listener)
	if err != nil {
		return 0, fmt.Errorf("cannot tell the port: %w", err)
	}
	if s.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return 0, fmt.Errorf("cannot make an epoll set: %w", err)
	}
	return addr.(*unix.SockaddrInet4).Port, s.watch(s.listener)
}

func (s *server) watch(fd int) error {
	if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
		return fmt.Errorf("cannot watch a socket: %w", err)
	}
	return nil
}

func (s *server) loop() error {
	ready := make([]unix.EpollEvent, 64)
	fds := []unix.PollFd{{Fd: int32(s.epoll), Events: unix.POLLIN}, {Fd: 0, Events: unix.POLLIN}}
	for {
		var timeout *unix.Timespec
		if len(s.due) > 0 {
			t := unix.NsecToTimespec(max(0, s.due[0].due-bench.Now()))
			timeout = &t
		}
		if _, err := unix.Ppoll(fds, timeout, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("cannot wait for work: %w", err)
		}
		for len(s.due) > 0 && s.due[0].due <= bench.Now() {
			if err := s.write(s.due[0]); err != nil {
				return err
			}
		}
		if fds[1].Revents != 0 {
			return nil
		}
		if fds[0].Revents == 0 {
			continue
		}
		n, err := unix.EpollWait(s.epoll, ready, 0)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("cannot read the epoll set: %w", err)
		}
		for _, e := range ready[:max(n, 0)] {
			if int(e.Fd) == s.listener {
				err = s.accept()
			} else {
				err = s.read(s.peers[int(e.Fd)])
			}
			if err != nil {
				return err
			}
		}
	}
}

func (s *server) accept() error {
	for {
		fd, _, err := unix.Accept4(s.listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot accept (are %d open files allowed?): %w", s.Streams, err)
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			return fmt.Errorf("cannot send at once: %w", err)
		}
		s.peers[fd] = &peer{fd: fd, in: make([]byte, 0, 4096)}
		if err := s.watch(fd); err != nil {
			return err
		}
	}
}

// read takes what a client sent and answers it if it is whole.
func (s *server) read(p *peer) error {
	var oob [64]byte
	var buf [8192]byte
	n, oobn, _, _, err := unix.Recvmsg(p.fd, buf[:], oob[:], 0)
	if errors.Is(err, unix.EAGAIN) {
		return nil
	}
	if err != nil || n == 0 {
		if p.open {
			return fmt.Errorf("a client left in the middle of an answer (%v)", errors.Join(err, io.EOF))
		}
		delete(s.peers, p.fd)
		return unix.Close(p.fd)
	}
	wall := receiveStamp(oob[:oobn])
	p.in = append(p.in, buf[:n]...)
	head, body, ok := bytes.Cut(p.in, []byte("\r\n\r\n"))
	if !ok {
		return nil
	}
	path, _, _ := bytes.Cut(bytes.TrimPrefix(head, []byte("GET ")), []byte(" "))
	switch string(path) {
	case "/health":
		return s.answer(p, `{"status":"ok"}`)
	case "/props":
		return s.answer(p, `{"default_generation_settings":{"n_ctx":4096},"total_slots":`+strconv.Itoa(s.Streams)+`,"model_alias":"m","model_ftype":"F16","model_path":"m.gguf","build_info":"b1-abc"}`)
	case "/v1/models":
		return s.answer(p, `{"data":[{"id":"m","meta":{"n_params":124}}]}`)
	}
	size, err := contentLength(head)
	if err != nil {
		return err
	}
	if len(body) < size {
		return nil
	}
	_, rest, _ := bytes.Cut(body, []byte(`"prompt":"`+prefix))
	number, _, _ := bytes.Cut(rest, []byte(" "))
	id, err := strconv.Atoi(string(number))
	if err != nil || p.open {
		return fmt.Errorf("a request without a number, or before its time: %.80q", body)
	}
	if wall == 0 {
		return errors.New("the kernel did not stamp a request: the truth is not known")
	}
	p.in = p.in[:0]
	p.received = wall - wallOffset()
	p.at, p.next, p.due, p.open = len(s.log), 0, p.received+s.First, true
	s.log = append(s.log, served{ID: id, Received: p.received, Writes: make([]int64, 0, s.Tokens)})
	heap.Push(&s.due, p)
	return nil
}

func contentLength(head []byte) (int, error) {
	_, rest, _ := bytes.Cut(bytes.ToLower(head), []byte("content-length: "))
	value, _, _ := bytes.Cut(rest, []byte("\r\n"))
	n, err := strconv.Atoi(string(value))
	if err != nil {
		return 0, fmt.Errorf("a request that is not understood: %.80q", head)
	}
	return n, nil
}

func (s *server) answer(p *peer, body string) error {
	p.in = p.in[:0]
	_, err := unix.Write(p.fd, fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
	return err
}

// write sends the next token of the peer that is due, and schedules the one
// after it by the clock, so that lateness does not add up.
func (s *server) write(p *peer) error {
	one := &s.log[p.at]
	data := s.chunks[p.next]
	one.Writes = append(one.Writes, bench.Now())
	if n, err := unix.Write(p.fd, data); err != nil || n != len(data) {
		return fmt.Errorf("a token could not be written at once (%d of %d bytes: %v)", n, len(data), err)
	}
	if p.next++; p.next == s.Tokens {
		p.open = false
		heap.Remove(&s.due, 0)
		return nil
	}
	p.due += s.interval()
	heap.Fix(&s.due, 0)
	return nil
}

// receiveStamp finds the kernel's stamp, ns of CLOCK_REALTIME; 0: there is none.
func receiveStamp(oob []byte) int64 {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= int(unsafe.Sizeof(unix.Timespec{})) {
			return (*unix.Timespec)(unsafe.Pointer(&m.Data[0])).Nano()
		}
	}
	return 0
}

// wallOffset is how far CLOCK_REALTIME is ahead of the clock of bench.Now: the
// tightest of a few readings, since the thread may lose its core within one.
func wallOffset() int64 {
	best, offset := int64(1)<<62, int64(0)
	for range 3 {
		before := bench.Now()
		var wall unix.Timespec
		if unix.ClockGettime(unix.CLOCK_REALTIME, &wall) != nil {
			continue
		}
		after := bench.Now()
		if after-before < best {
			best, offset = after-before, wall.Nano()-(before+after)/2
		}
	}
	return offset
}
