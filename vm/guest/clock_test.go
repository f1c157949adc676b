// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"math"
	"net/http"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

func TestClockOff(t *testing.T) {
	at := func(d time.Duration) time.Time { return time.Unix(1e9, 0).Add(d) }
	for _, c := range []struct {
		name                  string
		sent, received, guest time.Time
		want                  time.Duration
	}{
		{"between the two", at(0), at(time.Second), at(time.Second / 2), 0},
		{"slow, but no slower than the answer", at(0), at(time.Minute), at(0), 0},
		{"fast, but no faster than the answer", at(0), at(time.Minute), at(time.Minute), 0},
		{"behind", at(0), at(time.Second), at(-time.Hour), -time.Hour},
		{"ahead", at(0), at(time.Second), at(time.Hour), time.Hour - time.Second},
		{"the host's clock was set back meanwhile", at(0), at(-time.Hour), at(-time.Minute), 0},
		{"the host slept meanwhile", at(0), at(8 * time.Hour), at(time.Second), 0},
		{"a lie", at(0), at(time.Second), time.Unix(0, math.MinInt64), math.MinInt64},
		{"another", at(0), at(time.Second), time.Unix(0, math.MaxInt64), time.Unix(0, math.MaxInt64).Sub(at(time.Second))},
	} {
		if got := clockOff(c.sent, c.received, c.guest); got != c.want && c.want != math.MinInt64 || c.want == math.MinInt64 && got >= 0 {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// TestClockKeeper asks every ten seconds for a day: a clock that is wrong now and then is set each
// time at once, one that is always wrong hardly ever, and one of which nothing is known never.
func TestClockKeeper(t *testing.T) {
	const every = 10 * time.Second
	for _, c := range []struct {
		name        string
		tell        func(beat int, now time.Time) int64
		least, most int
	}{
		{"right", func(_ int, now time.Time) int64 { return now.Add(MaxClockError).UnixNano() }, 0, 0},
		{"of an older agent", func(int, time.Time) int64 { return 0 }, 0, 0},
		{"wrong once an hour", func(beat int, now time.Time) int64 {
			if beat%360 == 100 {
				now = now.Add(-time.Hour)
			}
			return now.UnixNano()
		}, 24, 24},
		{"a pair of times, as a host that slept again at once", func(beat int, now time.Time) int64 {
			if beat == 100 || beat == 101 {
				now = now.Add(-time.Minute)
			}
			return now.UnixNano()
		}, 2, 2},
		{"always behind", func(_ int, now time.Time) int64 { return now.Add(-2 * time.Second).UnixNano() }, 26, 32},
		{"always a lie", func(int, time.Time) int64 { return math.MinInt64 }, 26, 32},
	} {
		var k ClockKeeper
		sets := 0
		for beat := range int(24 * time.Hour / every) {
			now := time.Unix(1e9, 0).Add(time.Duration(beat) * every)
			k.hear(now, now, c.tell(beat, now))
			if off := k.due(now); off != 0 {
				sets++
				if k.due(now) != 0 {
					t.Errorf("%s: set twice for one answer", c.name)
				}
			}
		}
		if sets < c.least || sets > c.most {
			t.Errorf("%s: set %d times in a day, want %d to %d", c.name, sets, c.least, c.most)
		}
	}
}

// TestOlderAgentKeepsItsClock: one that is adopted with its machine has neither the field nor
// the call, and is asked for nothing that it does not know.
func TestOlderAgentKeepsItsClock(t *testing.T) {
	const ping = "/firkin.agent.v1.AgentService/Ping"
	c := serveMux(t, func(mux *http.ServeMux) {
		mux.Handle(ping, connect.NewUnaryHandler(ping, func(_ context.Context, r *connect.Request[agentv1.PingRequest]) (*connect.Response[agentv1.PingResponse], error) {
			return connect.NewResponse(&agentv1.PingResponse{Payload: r.Msg.GetPayload()}), nil
		}))
		mux.HandleFunc("/", func(_ http.ResponseWriter, r *http.Request) { t.Errorf("it was asked for %s", r.URL.Path) })
	})
	var k ClockKeeper
	for range 3 {
		if err := k.Ask(t.Context(), c.Agent); err != nil {
			t.Fatal(err)
		}
		if off, err := k.Set(t.Context(), c.Agent); off != 0 || err != nil {
			t.Errorf("%s, %v", off, err)
		}
	}
}
