// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// The metrics of /metrics/resource, by the names and labels of the kubelet
// (pkg/kubelet/metrics/collectors/resource_metrics.go): metrics-server knows no others.
var (
	containerLabels = []string{"container", "pod", "namespace"}
	podLabels       = []string{"pod", "namespace"}

	nodeCPU         = prometheus.NewDesc("node_cpu_usage_seconds_total", "Processor time that the node has used, in core-seconds.", nil, nil)
	nodeMemory      = prometheus.NewDesc("node_memory_working_set_bytes", "Working set of the node.", nil, nil)
	containerStart  = prometheus.NewDesc("container_start_time_seconds", "When the container was started, in seconds since 1970.", containerLabels, nil)
	containerCPU    = prometheus.NewDesc("container_cpu_usage_seconds_total", "Processor time that the container has used, in core-seconds.", containerLabels, nil)
	containerMemory = prometheus.NewDesc("container_memory_working_set_bytes", "Working set of the container.", containerLabels, nil)
	podCPU          = prometheus.NewDesc("pod_cpu_usage_seconds_total", "Processor time that the pod's machine has used, in core-seconds.", podLabels, nil)
	podMemory       = prometheus.NewDesc("pod_memory_working_set_bytes", "Working set of the pod's machine.", podLabels, nil)
	scrapeError     = prometheus.NewDesc("resource_scrape_error", "1 if something could not be measured, else 0.", nil, nil)
)

// resourceMetrics serves what metrics-server scrapes.
func (s *Server) resourceMetrics(w http.ResponseWriter, r *http.Request) {
	summary, missing, err := s.opts.Stats(r.Context())
	if err != nil {
		s.opts.Logger.Warn("Cannot measure for /metrics/resource", "error", err)
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(&resourceCollector{summary: summary, failed: err != nil || missing > 0})
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(w, r)
}

// resourceCollector makes metrics of one summary.
type resourceCollector struct {
	summary *statsv1alpha1.Summary // nil when it could not be made
	failed  bool
}

// Describe implements prometheus.Collector, like Collect.
func (c *resourceCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{nodeCPU, nodeMemory, containerStart, containerCPU, containerMemory, podCPU, podMemory, scrapeError} {
		ch <- d
	}
}

// Collect tells what is known.
func (c *resourceCollector) Collect(ch chan<- prometheus.Metric) {
	failed := 0.0
	if c.failed {
		failed = 1
	}
	ch <- prometheus.MustNewConstMetric(scrapeError, prometheus.GaugeValue, failed)
	if c.summary == nil {
		return
	}
	usage := func(cpu *statsv1alpha1.CPUStats, memory *statsv1alpha1.MemoryStats, cpuDesc, memoryDesc *prometheus.Desc, labels ...string) {
		if cpu != nil && cpu.UsageCoreNanoSeconds != nil {
			seconds := float64(*cpu.UsageCoreNanoSeconds) / float64(time.Second)
			ch <- prometheus.NewMetricWithTimestamp(cpu.Time.Time, prometheus.MustNewConstMetric(cpuDesc, prometheus.CounterValue, seconds, labels...))
		}
		if memory != nil && memory.WorkingSetBytes != nil {
			ch <- prometheus.NewMetricWithTimestamp(memory.Time.Time, prometheus.MustNewConstMetric(memoryDesc, prometheus.GaugeValue, float64(*memory.WorkingSetBytes), labels...))
		}
	}
	usage(c.summary.Node.CPU, c.summary.Node.Memory, nodeCPU, nodeMemory)
	for _, p := range c.summary.Pods {
		for _, container := range p.Containers {
			labels := []string{container.Name, p.PodRef.Name, p.PodRef.Namespace}
			usage(container.CPU, container.Memory, containerCPU, containerMemory, labels...)
			if container.StartTime.Unix() > 0 {
				ch <- prometheus.MustNewConstMetric(containerStart, prometheus.GaugeValue, float64(container.StartTime.UnixNano())/float64(time.Second), labels...)
			}
		}
		usage(p.CPU, p.Memory, podCPU, podMemory, p.PodRef.Name, p.PodRef.Namespace)
	}
}
