// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/x509"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// counters are the metrics of one certificate. They implement certificate.Counter, of renewals that failed.
type counters struct {
	expiresAt, failures *prometheus.Desc
	// expiry is in seconds since 1970; 0: there is no certificate.
	expiry, failed atomic.Int64
}

func newCounters(which string) *counters {
	label := prometheus.Labels{"certificate": which}
	return &counters{
		expiresAt: prometheus.NewDesc("vk_firkin_certificate_expiration_timestamp_seconds", "When a certificate of the node expires.", nil, label),
		failures:  prometheus.NewDesc("vk_firkin_certificate_renew_failures_total", "How often a certificate of the node could not be asked for, or was not issued.", nil, label),
	}
}

// Inc implements certificate.Counter.
func (c *counters) Inc() { c.failed.Add(1) }

func (c *counters) expires(cert *x509.Certificate) { c.expiry.Store(cert.NotAfter.Unix()) }

// Describe implements prometheus.Collector.
func (c *counters) Describe(descs chan<- *prometheus.Desc) {
	descs <- c.expiresAt
	descs <- c.failures
}

// Collect implements prometheus.Collector.
func (c *counters) Collect(metrics chan<- prometheus.Metric) {
	if at := c.expiry.Load(); at > 0 {
		metrics <- prometheus.MustNewConstMetric(c.expiresAt, prometheus.GaugeValue, float64(at))
	}
	metrics <- prometheus.MustNewConstMetric(c.failures, prometheus.CounterValue, float64(c.failed.Load()))
}

// Metrics are those of the node's certificate.
func (i *Identity) Metrics() prometheus.Collector { return i.counters }

// Metrics are those of the serving certificate.
func (s *Serving) Metrics() prometheus.Collector { return s.counters }
