// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/vk-firkin/vk-firkin/provider/pressure"
)

// pressureMetrics tell what the host has left and what is done about it.
type pressureMetrics struct {
	available, depth *prometheus.GaugeVec
	steps            *prometheus.CounterVec
}

func newPressureMetrics() pressureMetrics {
	m := pressureMetrics{
		available: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "vk_firkin_host_available_bytes", Help: "What the host has left: memory, and disk where machines and where images are.",
		}, []string{"resource"}),
		depth: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "vk_firkin_pressure_depth", Help: "How far the relief of a resource has to go: 0 nothing, 1 no refills, 2 what nobody uses goes and pods are refused, 3 pods are ended.",
		}, []string{"resource"}),
		steps: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vk_firkin_relief_steps_total", Help: "Steps taken because the host was short of a resource, in their order: StopRefills, EvictWarm, CollectSnapshots, CollectImages, RefusePods, EvictReserved, EvictPod.",
		}, []string{"step", "resource"}),
	}
	for _, r := range []pressure.Resource{pressure.Disk, pressure.Images, pressure.Memory} {
		m.depth.WithLabelValues(string(r))
		for _, s := range pressure.Steps {
			m.steps.WithLabelValues(string(s), string(r))
		}
	}
	return m
}

func (p pressureMetrics) register(r *prometheus.Registry) {
	r.MustRegister(p.available, p.depth, p.steps)
}

var _ pressure.Observer = (*Metrics)(nil)

// Available implements pressure.Observer.
func (m *Metrics) Available(r pressure.Resource, bytes int64, depth pressure.Depth) {
	m.pressure.available.WithLabelValues(string(r)).Set(float64(bytes))
	m.pressure.depth.WithLabelValues(string(r)).Set(float64(depth))
}

// Relieved implements pressure.Observer.
func (m *Metrics) Relieved(step pressure.Step, r pressure.Resource) {
	m.pressure.steps.WithLabelValues(string(step), string(r)).Inc()
}
