package nvml

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Limits of the waits.
const (
	// givenBack is how far the memory in use may lie above what it was before and
	// still count as given back: the driver keeps small bookkeeping of its own.
	givenBack = 32 << 20
	freeLimit = 30 * time.Second

	// idleBusy is the share of time up to which a GPU is idle.
	idleBusy = 0.05
	// coolMargin is how far below the temperature at which it slows itself down
	// a GPU must be; coolCelsius is what must do where that is not known.
	coolMargin  = 20.0
	coolCelsius = 65.0

	waitStep = 50 * time.Millisecond
)

// WaitFree waits until the devices have no more memory in use than before (in
// bytes by subject, see Used), for at most 30 s. released is what is in use
// then, by subject; warnings say which device has not come back, with the
// figures. A device that does not tell is left out.
func (l *Library) WaitFree(ctx context.Context, before map[string]int64) (released map[string]int64, warnings []string) {
	return l.waitFree(ctx, before, freeLimit)
}

func (l *Library) waitFree(ctx context.Context, before map[string]int64, limit time.Duration) (released map[string]int64, warnings []string) {
	released = map[string]int64{}
	began := time.Now()
	for {
		warnings = nil
		for _, d := range l.devices {
			was, asked := before[d.Subject]
			if !asked {
				continue
			}
			used, err := l.Used(d)
			if err != nil {
				warnings = append(warnings, fmt.Sprintf("whether the memory of GPU %d was given back is not known: %v", d.Index, err))
				continue
			}
			released[d.Subject] = used
			if used > was+givenBack {
				warnings = append(warnings, fmt.Sprintf("GPU memory was not given back: %s has %d MiB in use %.0f s after the backend ended, and had %d MiB before it was started",
					d.Subject, used>>20, time.Since(began).Seconds(), was>>20))
			}
		}
		if !strings.Contains(strings.Join(warnings, "\n"), "not given back") || time.Since(began) >= limit || !sleep(ctx, waitStep) {
			return released, warnings
		}
	}
}

// WaitIdle waits until the devices are idle (a kernel runs in at most 5 % of the
// time) and cool (20 °C below where they slow themselves down), for at most limit.
// Warnings say which is busy with other work and which is hot, with the figures.
// What a device does not tell is not waited for.
func (l *Library) WaitIdle(ctx context.Context, devices []Device, limit time.Duration) (shared, hot []string) {
	began := time.Now()
	for {
		shared, hot = nil, nil
		for _, d := range devices {
			c, err := l.card(d)
			if err != nil {
				continue
			}
			if busy, _, err := c.utilization(); err == nil && busy > idleBusy {
				shared = append(shared, fmt.Sprintf("shared GPU: %s was busy %.0f %% of the time before the cell, %.0f s after everything of ours had ended", d.Subject, 100*busy, time.Since(began).Seconds()))
			}
			if celsius, err := c.temperature(); err == nil {
				most := coolCelsius
				if slow, err := c.slowdown(); err == nil {
					most = slow - coolMargin
				}
				if celsius > most {
					hot = append(hot, fmt.Sprintf("hot GPU: %s was at %.0f °C before the cell (it should be at %.0f at most), after %.0f s of waiting", d.Subject, celsius, most, time.Since(began).Seconds()))
				}
			}
		}
		if len(shared)+len(hot) == 0 || time.Since(began) >= limit || !sleep(ctx, waitStep) {
			return shared, hot
		}
	}
}

// sleep is false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
