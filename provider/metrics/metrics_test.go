// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package metrics_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/provider/metrics"
)

func scrape(t *testing.T, m *metrics.Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	promhttp.HandlerFor(m.Registry(), promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func TestMetrics(t *testing.T) {
	m := metrics.New(metrics.Sources{
		Pods: func() []*corev1.Pod {
			return []*corev1.Pod{{}, {Status: corev1.PodStatus{Phase: corev1.PodRunning}}, {Status: corev1.PodStatus{Phase: corev1.PodRunning}}}
		},
		Ledger: func() metrics.Ledger {
			return metrics.Ledger{Capacity: metrics.Amount{MilliCPU: 2500, MemoryBytes: 1024, DiskBytes: 7}, ActiveMachines: 3}
		},
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
		`vk_firkin_pods{phase="Pending"} 1`,
		`vk_firkin_pods{phase="Running"} 2`,
		`vk_firkin_pods{phase="Failed"} 0`,
		`vk_firkin_ledger_cpu_cores{state="capacity"} 2.5`,
		`vk_firkin_ledger_memory_bytes{state="capacity"} 1024`,
		`vk_firkin_ledger_disk_bytes{state="capacity"} 7`,
		`vk_firkin_machines{state="active"} 3`,
	} {
		if !strings.Contains(got, want+"\n") {
			t.Errorf("missing %s", want)
		}
	}
}

func TestWithoutSources(t *testing.T) {
	got := scrape(t, metrics.New(metrics.Sources{}))
	if !strings.Contains(got, `vk_firkin_image_pulls_total{result="error"} 0`) || strings.Contains(got, "vk_firkin_pods{") {
		t.Error(got)
	}
}
