// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestTake: letters are outcomes (s success, w warning, f failure, u unknown); after each is
// what the probe says: + or -, or . when it is not settled.
func TestTake(t *testing.T) {
	for _, test := range []struct {
		name  string
		spec  Spec
		holds bool
		in    string
		want  string
	}{
		{"defaults", Spec{}, false, "sfff", "+..-"},
		{"unready at first", Spec{Successes: 2}, false, "sss", ".++"},
		{"success breaks a row of failures", Spec{Failures: 3}, true, "ffsfff", "..+..-"},
		{"failure breaks a row of successes", Spec{Successes: 2, Failures: 1}, false, "sfss", ".-.+"},
		{"unknown counts for nothing", Spec{Failures: 2}, true, "fuufu", "...-."},
		{"unknown breaks no row", Spec{Successes: 2, Failures: 2}, false, "susfuf", "..+..-"},
		{"a warning is a success", Spec{}, false, "wf", "+."},
		{"a success after failure", Spec{Successes: 1, Failures: 1}, true, "fs", "-+"},
		{"goes on failing", Spec{Failures: 2}, true, "ffff", ".---"},
		{"nonsense is default", Spec{Successes: -1, Failures: -1}, false, "sfff", "+..-"},
	} {
		p := New(test.spec, test.holds)
		var got strings.Builder
		for i, c := range test.in {
			before := p.Holds()
			settled := p.Take(map[rune]Result{'s': Success, 'w': Warning, 'f': Failure, 'u': Unknown}[c])
			switch {
			case !settled && p.Holds() != before:
				t.Errorf("%s: after %q it changed without being settled", test.name, test.in[:i+1])
			case !settled:
				got.WriteByte('.')
			case p.Holds():
				got.WriteByte('+')
			default:
				got.WriteByte('-')
			}
		}
		if got.String() != test.want {
			t.Errorf("%s: %q says %q, want %q", test.name, test.in, got.String(), test.want)
		}
	}
}

// script is a container whose probes answer what the script says for the time since the run
// began, and the log of what came of it.
type script struct {
	began time.Time
	// answer per kind, by the seconds since the run began.
	answer func(kind Kind, second int) Result
	takes  time.Duration

	mu      sync.Mutex
	looks   map[Kind][]time.Duration // guarded by mu, like the next
	changes []string
}

func (s *script) runner(r Runner) *Runner {
	s.began = time.Now()
	s.looks = map[Kind][]time.Duration{}
	r.Began = s.began.Add(r.Began.Sub(time.Time{})) // a test may say that it began earlier
	r.Look = func(ctx context.Context, kind Kind, timeout time.Duration) Outcome {
		s.mu.Lock()
		s.looks[kind] = append(s.looks[kind], time.Since(s.began))
		s.mu.Unlock()
		if s.takes > 0 {
			sleepUntil(ctx, time.Now().Add(min(s.takes, timeout)))
		}
		return Outcome{Result: s.answer(kind, int(time.Since(s.began)/time.Second))}
	}
	r.Report = func(rep Report) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if rep.Changed {
			s.changes = append(s.changes, fmt.Sprintf("%s %t", rep.Kind, rep.Holds))
		}
	}
	return &r
}

func always(r Result) func(Kind, int) Result { return func(Kind, int) Result { return r } }

func TestRunner(t *testing.T) {
	second := &Spec{Period: time.Second, Failures: 3}
	for _, test := range []struct {
		name   string
		r      Runner
		answer func(Kind, int) Result
		want   string
		// looks of each kind, at least and at most, in 20 s.
		looks map[Kind][2]int
	}{
		{"nothing to ask", Runner{}, always(Success), "", map[Kind][2]int{}},
		{"ready at once, asked on", Runner{Readiness: second}, always(Success), "Readiness true", map[Kind][2]int{Readiness: {19, 21}}},
		{"alive is no news", Runner{Liveness: second}, always(Success), "", map[Kind][2]int{Liveness: {19, 21}}},
		{"dead is final", Runner{Liveness: second}, always(Failure), "Liveness false", map[Kind][2]int{Liveness: {3, 3}}},
		{"readiness comes and goes", Runner{Readiness: second}, func(_ Kind, s int) Result {
			if s >= 5 && s < 12 {
				return Failure
			}
			return Success
		}, "Readiness true, Readiness false, Readiness true", map[Kind][2]int{Readiness: {19, 21}}},
		{"startup holds the others back", Runner{Startup: second, Liveness: second, Readiness: second}, func(k Kind, s int) Result {
			if k == Startup && s < 2 || k == Readiness && s < 5 {
				return Failure
			}
			return Success
		}, "Startup true, Readiness true", map[Kind][2]int{Startup: {3, 3}, Liveness: {16, 19}, Readiness: {16, 19}}},
		{"startup fails for good", Runner{Startup: second, Liveness: second, Readiness: second}, always(Failure), "Startup false", map[Kind][2]int{Startup: {3, 3}}},
		{"unknown never settles", Runner{Startup: second, Readiness: second}, always(Unknown), "", map[Kind][2]int{Startup: {19, 21}}},
		{"initial delay", Runner{Readiness: &Spec{Period: time.Second, InitialDelay: 15 * time.Second}}, always(Success), "Readiness true", map[Kind][2]int{Readiness: {4, 6}}},
		{"default period", Runner{Readiness: &Spec{}}, always(Success), "Readiness true", map[Kind][2]int{Readiness: {2, 3}}},
		{"resumed ready, no news", Runner{Resumed: true, Started: true, Ready: true, Startup: second, Readiness: second}, always(Success), "", map[Kind][2]int{Readiness: {18, 21}}},
		{"resumed ready, not any more", Runner{Resumed: true, Started: true, Ready: true, Readiness: second}, always(Failure), "Readiness false", map[Kind][2]int{Readiness: {18, 21}}},
		{"resumed unready", Runner{Resumed: true, Started: true, Readiness: second}, always(Success), "Readiness true", map[Kind][2]int{Readiness: {18, 21}}},
		{"resumed before startup", Runner{Resumed: true, Startup: second, Readiness: second}, always(Success), "Startup true, Readiness true", map[Kind][2]int{Startup: {1, 1}, Readiness: {17, 21}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{answer: test.answer}
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				s.runner(test.r).Run(ctx, ctx)
				if got := strings.Join(s.changes, ", "); got != test.want {
					t.Errorf("changes %q, want %q", got, test.want)
				}
				for kind := range kinds {
					if n, want := len(s.looks[kind]), test.looks[kind]; n < want[0] || n > want[1] {
						t.Errorf("%s: %d looks, want %v: %v", kind, n, want, s.looks[kind])
					}
				}
			})
		})
	}
}

// TestFirstLookIsAtOnce: a new run does not wait for a period.
func TestFirstLookIsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{answer: always(Success)}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		s.runner(Runner{Startup: &Spec{}, Liveness: &Spec{}, Readiness: &Spec{InitialDelay: 2 * time.Second}}).Run(ctx, ctx)
		if s.looks[Startup][0] != 0 || s.looks[Liveness][0] != 0 || s.looks[Readiness][0] != 2*time.Second {
			t.Errorf("looks %v", s.looks)
		}
	})
}

// TestVital: a run that is to end is asked for its readiness only, and one that has not
// started yet for nothing.
func TestVital(t *testing.T) {
	for name, startup := range map[string]Result{"started": Success, "not started": Failure} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{answer: func(k Kind, _ int) Result {
					if k == Startup {
						return startup
					}
					return Success
				}}
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				vital, stop := context.WithTimeout(ctx, 10*time.Second)
				defer stop()
				spec := &Spec{Period: time.Second, Failures: 100}
				s.runner(Runner{Startup: spec, Liveness: spec, Readiness: spec}).Run(ctx, vital)
				if s.answer(Startup, 0) == Failure {
					if len(s.looks[Readiness]) > 0 || time.Since(s.began) != 10*time.Second {
						t.Errorf("after %s: %v", time.Since(s.began), s.looks)
					}
					return
				}
				live, ready := s.looks[Liveness], s.looks[Readiness]
				if live[len(live)-1] > 10*time.Second || ready[len(ready)-1] < 17*time.Second {
					t.Errorf("liveness until %s, readiness until %s", live[len(live)-1], ready[len(ready)-1])
				}
			})
		})
	}
}

// TestLooksEndWithTheRun: a look that is under way when the run ends says nothing.
func TestLooksEndWithTheRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{answer: always(Failure), takes: time.Hour}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		s.runner(Runner{Liveness: &Spec{Failures: 1, Timeout: time.Hour}}).Run(ctx, ctx)
		if len(s.changes) > 0 || time.Since(s.began) != 5*time.Second {
			t.Errorf("%v after %s", s.changes, time.Since(s.began))
		}
	})
}

// TestSlowLooksDoNotPile: one that takes longer than the period is followed at once by the
// next, not by several.
func TestSlowLooksDoNotPile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{answer: always(Success), takes: 3 * time.Second}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		s.runner(Runner{Readiness: &Spec{Period: time.Second, Timeout: 10 * time.Second}}).Run(ctx, ctx)
		if got := s.looks[Readiness]; len(got) != 7 {
			t.Errorf("looks at %v", got)
		}
	})
}

// TestSpread: runs that began together drift apart, and a node that comes back does not ask
// them all at once.
func TestSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const pods = 20
		for _, resumed := range []bool{false, true} {
			var wg sync.WaitGroup
			var last, first []time.Duration
			var mu sync.Mutex
			for range pods {
				s := &script{answer: always(Success)}
				wg.Go(func() {
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
					defer cancel()
					s.runner(Runner{Liveness: &Spec{}, Resumed: resumed}).Run(ctx, ctx)
					mu.Lock()
					defer mu.Unlock()
					first, last = append(first, s.looks[Liveness][0]), append(last, s.looks[Liveness][len(s.looks[Liveness])-1])
					if n := len(s.looks[Liveness]); n < 55 || n > 60 {
						t.Errorf("%d looks in 10 minutes", n)
					}
				})
			}
			wg.Wait()
			slices.Sort(first)
			slices.Sort(last)
			if resumed && first[pods-1]-first[0] < 3*time.Second || last[pods-1]-last[0] < 2*time.Second {
				t.Errorf("resumed %t: first looks %v, last looks %v", resumed, first, last)
			}
		}
	})
}
