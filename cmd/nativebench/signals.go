package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
)

// stopper turns Ctrl-C into the two kinds of stop.
type stopper struct {
	ctx   context.Context // done at the second Ctrl-C: stop now
	drain chan struct{}   // closed at the first: let requests in flight end
	close func()

	measures atomic.Bool // there are requests to wait for
}

// listen catches SIGINT and SIGTERM until close. A third signal has its usual
// effect; children and servers end with this process in any case.
func listen(parent context.Context, say io.Writer) *stopper {
	ctx, cancel := context.WithCancel(parent)
	s := &stopper{ctx: ctx, drain: make(chan struct{})}
	signals := make(chan os.Signal, 2)
	ended := make(chan struct{})
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		defer close(ended)
		for range 2 {
			select {
			case <-signals:
			case <-ctx.Done():
				return
			}
			select {
			case <-s.drain:
				fmt.Fprintln(say, "\nstopping now")
				signal.Stop(signals)
				cancel()
				return
			default:
				what := "\nstopping"
				if s.measures.Load() {
					what += ": waiting for the requests in flight (Ctrl-C again to stop now)"
				}
				fmt.Fprintln(say, what)
				close(s.drain)
			}
		}
	}()
	s.close = func() {
		signal.Stop(signals)
		cancel()
		<-ended
	}
	return s
}

// stopped tells whether a stop of either kind was asked for.
func (s *stopper) stopped() bool {
	select {
	case <-s.drain:
		return true
	default:
		return s.ctx.Err() != nil
	}
}

// either is done at the first stop of any kind: for work that has nothing to
// finish, such as preparing and waiting.
func (s *stopper) either() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(s.ctx)
	go func() {
		select {
		case <-s.drain:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}
