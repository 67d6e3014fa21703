package httpbackends

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
)

var _ bench.Profiled = (*backend)(nil)

// StartProfile tells the server to begin what its profiler captures.
func (b *backend) StartProfile(ctx context.Context) error {
	p := b.cfg.Server.Profile
	return b.profile(ctx, p.Start, p.Body, getTimeout)
}

// StopProfile tells it to end that, and waits, as long as ctx allows, until it
// says that it has: what was seen may be written first.
func (b *backend) StopProfile(ctx context.Context) error {
	return b.profile(ctx, b.cfg.Server.Profile.Stop, nil, 0)
}

func (b *backend) profile(ctx context.Context, path string, body any, limit time.Duration) error {
	row := b.cfg.Server
	if path == "" {
		return fmt.Errorf("%s has no path that begins or ends a profile", row.Name)
	}
	client := b.client()
	client.Timeout = limit
	if err := b.call(ctx, client, http.MethodPost, path, body, nil); err != nil {
		return fmt.Errorf("%s at %s: %w (it must have been started with %s)", row.Name, b.where(), err, row.Profile.Wants)
	}
	return nil
}
