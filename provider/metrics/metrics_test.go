// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package metrics_test

import (
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/provider/metrics"
	"github.com/vk-firkin/vk-firkin/provider/pressure"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

var update = flag.Bool("update", false, "rewrite golden files")

func scrape(t *testing.T, m *metrics.Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	promhttp.HandlerFor(m.Registry(), promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func supply() warmpool.Status {
	return warmpool.Status{
		Account: warmpool.Account{
			Capacity: warmpool.Budget{MilliCPU: 2500, MemoryBytes: 1024, DiskBytes: 7, Slots: 2}, Warm: warmpool.Budget{MemoryBytes: 512},
			Machines: []warmpool.Entry{{}, {}, {}, {Warm: true}},
		},
		Pools: []warmpool.PoolStatus{
			{Pool: "team/app", Desired: 4, Ready: 2, Restoring: 1, Outdated: 1, Active: 3, UnmetSince: time.Now().Add(-time.Hour)},
			{Pool: "team/other", Desired: 1, Skip: warmpool.SkipBackoff, UnmetSince: time.Now().Add(-time.Minute)},
		},
		Templates: []warmpool.TemplateStatus{{Namespace: "team", Name: "app", Revision: "aa", Phase: warmpool.TemplateBuilding}},
	}
}

func TestMetrics(t *testing.T) {
	m := metrics.New(metrics.Sources{
		Pods: func() []*corev1.Pod {
			return []*corev1.Pod{{}, {Status: corev1.PodStatus{Phase: corev1.PodRunning}}, {Status: corev1.PodStatus{Phase: corev1.PodRunning}}}
		},
		Supply: supply,
	})
	m.ObservePhase(provider.PhaseRestore, "restore", 150*time.Millisecond)
	m.ObservePhase(provider.PhaseTotal, "restore", 3*time.Minute)
	m.ObservePhase(provider.PhaseScheduleSeen, "restore", -time.Second) // the API server's clock is ahead
	m.ImagePulled(false, nil)
	m.ImagePulled(true, nil)
	m.ImagePulled(false, errors.New("no"))
	m.MachineStarted("restore", nil)
	m.MachineStarted("", errors.New("no"))
	m.GuestReconnected()
	m.SnapshotQuarantined()
	m.Reclaimable("image", 7)
	m.Reclaimable("image", 5)
	m.Collected("image", 2, 1<<20)
	m.CollectionEnded(time.Unix(1700000000, 0), nil)
	m.CollectionEnded(time.Unix(1700000001, 0), errors.New("no"))
	m.SnapshotScrubbed(3, false)
	m.SnapshotScrubbed(4, true)
	m.ObserveMachine(provider.MachineSuspect)
	m.ObserveSample(provider.SampleCommandStart, 15*time.Millisecond)
	m.Sampled(warmpool.Sample{Metric: warmpool.MetricWarmPoolCheckout, Duration: 3 * time.Millisecond})
	m.Sampled(warmpool.Sample{Metric: warmpool.MetricRefill, Duration: 300 * time.Millisecond})
	m.CheckedOut(warmpool.PathWarm, "team/app")
	m.CheckedOut(warmpool.PathWarm, "team/app")
	m.CheckedOut(warmpool.PathBuild, "team/app")
	m.CheckedOut(warmpool.PathCold, "team/app")
	m.CheckedOut(warmpool.PathRestore, "") // of no template: no pool could have had it
	m.Refilled("team/app", errors.New("no"))
	m.Evicted("team/app", warmpool.EvictDemand)
	m.Skipped("team/app", warmpool.SkipDiskPressure)
	m.Skipped("team/app", warmpool.SkipAlreadyWarm)
	m.Available(pressure.Disk, 4096, pressure.Shed)
	m.Relieved(pressure.StepEvictWarm, pressure.Disk)
	got := scrape(t, m)
	for _, want := range []string{
		`vk_firkin_pod_start_phase_seconds_bucket{path="restore",phase="restore",le="0.1"} 0`,
		`vk_firkin_pod_start_phase_seconds_bucket{path="restore",phase="restore",le="0.25"} 1`,
		`vk_firkin_pod_start_phase_seconds_bucket{path="restore",phase="total",le="120"} 0`,
		`vk_firkin_pod_start_phase_seconds_count{path="restore",phase="total"} 1`,
		`vk_firkin_pod_start_phase_seconds_bucket{path="restore",phase="schedule_seen",le="0.005"} 1`,
		`vk_firkin_image_pulls_total{result="present"} 1`,
		`vk_firkin_image_pulls_total{result="success"} 1`,
		`vk_firkin_image_pulls_total{result="error"} 1`,
		`vk_firkin_machine_starts_total{path="restore",result="success"} 1`,
		`vk_firkin_machine_starts_total{path="",result="error"} 1`,
		`vk_firkin_guest_reconnects_total 1`,
		`vk_firkin_snapshots_quarantined_total 1`,
		`vk_firkin_reclaimable_bytes{kind="image"} 5`,
		`vk_firkin_gc_removed_total{kind="image"} 2`,
		`vk_firkin_gc_removed_bytes_total{kind="image"} 1.048576e+06`,
		`vk_firkin_gc_runs_total{result="success"} 1`,
		`vk_firkin_gc_last_run_timestamp_seconds{result="error"} 1.700000001e+09`,
		`vk_firkin_scrubs_total{result="damaged"} 1`,
		`vk_firkin_scrub_bytes_total 7`,
		`vk_firkin_machine_health_total{health="suspect"} 1`,
		`vk_firkin_machine_health_total{health="stuck"} 0`,
		`vk_firkin_pods{phase="Pending"} 1`,
		`vk_firkin_pods{phase="Running"} 2`,
		`vk_firkin_pods{phase="Failed"} 0`,
		`vk_firkin_ledger_cpu_cores{state="capacity"} 2.5`,
		`vk_firkin_ledger_memory_bytes{state="capacity"} 1024`,
		`vk_firkin_ledger_disk_bytes{state="capacity"} 7`,
		`vk_firkin_machines{state="active"} 3`,
		`vk_firkin_machines{state="warm"} 1`,
		`vk_firkin_ledger_slots{state="capacity"} 2`,
		`vk_firkin_ledger_memory_bytes{state="warm"} 512`,
		`vk_firkin_sample_seconds_bucket{sample="command_start",le="0.01"} 0`,
		`vk_firkin_sample_seconds_bucket{sample="command_start",le="0.02"} 1`,
		`vk_firkin_sample_seconds_count{sample="warm_pool_checkout"} 1`,
		`vk_firkin_sample_seconds_count{sample="kill_delete"} 0`,
		`vk_firkin_pool_refill_seconds_count 1`,
		`vk_firkin_host_available_bytes{resource="disk"} 4096`,
		`vk_firkin_pressure_depth{resource="disk"} 2`,
		`vk_firkin_relief_steps_total{resource="disk",step="EvictWarm"} 1`,
		`vk_firkin_relief_steps_total{resource="memory",step="EvictPod"} 0`,
		`vk_firkin_checkouts_total{path="warm"} 2`,
		`vk_firkin_checkouts_total{path="restore"} 1`,
		`vk_firkin_checkouts_total{path="build"} 1`,
		`vk_firkin_checkouts_total{path="cold"} 1`,
		`vk_firkin_pool_checkouts_total{result="hit"} 2`,
		`vk_firkin_pool_checkouts_total{result="miss"} 1`,
		`vk_firkin_pool_refills_total{result="error"} 1`,
		`vk_firkin_pool_evictions_total{reason="Demand"} 1`,
		`vk_firkin_pool_skips_total{reason="DiskPressure"} 1`,
		`vk_firkin_pool_entries{namespace="team",pool="app",state="ready"} 2`,
		`vk_firkin_pool_entries{namespace="team",pool="app",state="desired"} 4`,
		`vk_firkin_pool_skipped{namespace="team",pool="other",reason="Backoff"} 1`,
		`vk_firkin_template_phase{namespace="team",phase="Building",revision="aa",template="app"} 1`,
	} {
		if !strings.Contains(got, want+"\n") {
			t.Errorf("missing %s", want)
		}
	}
}

// How long a target is unmet follows the clock.
func TestUnmet(t *testing.T) {
	got := scrape(t, metrics.New(metrics.Sources{Supply: supply}))
	for name, least := range map[string]float64{`vk_firkin_pool_unmet_seconds{namespace="team",pool="app"}`: 3600, `vk_firkin_pool_unmet_seconds{namespace="team",pool="other"}`: 60, "vk_firkin_pool_oldest_unmet_seconds": 3600} {
		_, rest, _ := strings.Cut(got, "\n"+name+" ")
		text, _, _ := strings.Cut(rest, "\n")
		if v, err := strconv.ParseFloat(text, 64); err != nil || v < least || v > least+60 {
			t.Errorf("%s is %q, want %v", name, text, least)
		}
	}
}

// The names are what dashboards and alerts are made of: they do not change by accident.
func TestNames(t *testing.T) {
	m := metrics.New(metrics.Sources{Pods: func() []*corev1.Pod { return nil }, Supply: supply})
	m.ObservePhase(provider.PhaseTotal, "warm", time.Second)
	m.MachineStarted("warm", nil)
	m.Reclaimable("image", 0)
	m.Collected("image", 0, 0)
	m.Available(pressure.Disk, 1, pressure.Ease)
	families, err := m.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "vk_firkin_") {
			continue
		}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		fmt.Fprintf(&b, "%s %s {%s}\n", strings.ToLower(f.GetType().String()), f.GetName(), strings.Join(labels, ","))
	}
	const golden = "testdata/names.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), b.String()); d != "" {
		t.Errorf("-update accepts it:\n%s", d)
	}
}

func TestWithoutSources(t *testing.T) {
	got := scrape(t, metrics.New(metrics.Sources{}))
	if !strings.Contains(got, `vk_firkin_image_pulls_total{result="error"} 0`) || strings.Contains(got, "vk_firkin_pods{") {
		t.Error(got)
	}
}
