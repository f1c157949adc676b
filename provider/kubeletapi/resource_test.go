// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package kubeletapi_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/provider/kubeletapi"
	"github.com/vk-firkin/vk-firkin/provider/stats"
)

// scrape reads /metrics/resource as metrics-server does.
func scrape(t *testing.T, s *server) map[string]*dto.MetricFamily {
	t.Helper()
	code, body := s.get(t, s.config(t, "", "good"), "/metrics/resource")
	if code != 200 {
		t.Fatalf("%d: %s", code, body)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body + "\n"))
	if err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	return families
}

// TestResourceMetrics: what metrics-server computes usage from: counters and gauges with
// the time of their measurement, and the time that each container was started.
func TestResourceMetrics(t *testing.T) {
	var s *server
	c, err := stats.New(stats.Options{
		NodeName: "n1", Machines: func() []machines { return s.node.Machines() }, Fresh: time.Nanosecond,
		Host: func() (stats.Host, error) {
			return stats.Host{CPUTime: time.Hour, MemoryTotalBytes: 2, WorkingSetBytes: 1}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s = newServer(t, func(o *kubeletapi.Options) { o.Stats = c.Summary })
	if got := scrape(t, s)["resource_scrape_error"].GetMetric()[0].GetGauge().GetValue(); got != 0 {
		t.Errorf("a node without pods: resource_scrape_error is %v", got)
	}
	s.runPod(t)
	first, second := scrape(t, s), scrape(t, s)
	for name, labels := range map[string]string{
		"node_cpu_usage_seconds_total": "", "node_memory_working_set_bytes": "",
		"container_cpu_usage_seconds_total": "c ns p", "container_memory_working_set_bytes": "c ns p",
		"pod_cpu_usage_seconds_total": "ns p", "pod_memory_working_set_bytes": "ns p",
	} {
		m := first[name].GetMetric()
		if len(m) != 1 {
			t.Errorf("%s: %v", name, m)
			continue
		}
		var values []string
		for _, l := range m[0].GetLabel() {
			values = append(values, l.GetValue())
		}
		if got := strings.Join(values, " "); got != labels {
			t.Errorf("%s is of %q, want %q", name, got, labels)
		}
		if age := time.Since(time.UnixMilli(m[0].GetTimestampMs())); age < 0 || age > time.Minute {
			t.Errorf("%s was measured %v ago", name, age)
		}
		if wantCounter := strings.HasSuffix(name, "_total"); (m[0].GetCounter() != nil) != wantCounter {
			t.Errorf("%s is %v", name, m[0])
		}
		if later := second[name].GetMetric(); len(later) != 1 || later[0].GetTimestampMs() < m[0].GetTimestampMs() {
			t.Errorf("%s, a second time: %v", name, later)
		}
	}
	s.node.mu.Lock()
	gone := s.node.targets["ns/p/c"]
	gone.Dial = noGuest
	s.node.targets["ns/p/c"] = gone
	s.node.mu.Unlock()
	await(t, "the error to be told", func() bool {
		return scrape(t, s)["resource_scrape_error"].GetMetric()[0].GetGauge().GetValue() == 1
	})
}

type machines = provider.PodMachine

// noGuest is the machine of a pod that does not answer.
func noGuest(context.Context) (*provider.Guest, error) { return nil, errors.New("no answer") }
