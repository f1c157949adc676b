// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package provider_test

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// BenchmarkIdle tells what the node process takes of one processor with 20 pods that only
// wait: without probes, and with one exec and one HTTP probe every 10 s each. The simulated
// guests, the application that is probed and the API are in this process too, so that it is
// more than the node's part.
//
//	go test ./provider -run '^$' -bench Idle -benchtime 1x
func BenchmarkIdle(b *testing.B) {
	const (
		pods   = 20
		window = 30 * time.Second
	)
	for _, probes := range []bool{false, true} {
		name := "without-probes"
		if probes {
			name = "with-probes"
		}
		b.Run(name, func(b *testing.B) {
			w := newWorld(b)
			a := serveApp(b)
			w.run()
			for i := range pods {
				p := pod(fmt.Sprintf("idle-%d", i), []string{"hang"})
				if probes {
					c := &p.Spec.Containers[0]
					c.ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"echo", "x"}}}}
					c.LivenessProbe = a.probe("/")
					c.LivenessProbe.PeriodSeconds = 10
				}
				w.create(p)
			}
			for i := range pods {
				w.await(fmt.Sprintf("idle-%d", i), "is ready", isReady)
			}
			b.ResetTimer()
			for range b.N {
				before := processorTime(b)
				<-time.After(window)
				b.ReportMetric(100*float64(processorTime(b)-before)/float64(window), "%cpu")
			}
		})
	}
}

func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
