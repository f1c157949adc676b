// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-firkin/vk-firkin/provider"
)

// TestPodReachesAPIServer: a program in the machine of a pod with a token reaches the API server by the address of its Service, also
// through the node process that follows; the machine of a pod without one answers for no address.
func TestPodReachesAPIServer(t *testing.T) {
	w := newWorld(t)
	if _, err := w.client.CoreV1().Services("default").Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"},
		Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Name: "https", Port: 443}}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	server, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			conn, err := server.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "API server")
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-served
	})
	led := func(o *provider.Options) {
		o.APIServer = func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", server.Addr().String())
		}
	}
	node := w.run(led)
	with := pod("with", []string{"sleep", "1h"})
	with.Spec.Volumes = []corev1.Volume{{Name: "token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: ptr(int64(3607))}}}}}}}
	with = w.create(with)
	without := w.create(pod("without", []string{"sleep", "1h"}))
	w.awaitPhase("with", corev1.PodRunning)
	w.awaitPhase("without", corev1.PodRunning)
	service := netip.MustParseAddrPort("10.96.0.1:443")
	reaches := func() {
		t.Helper()
		// In the machine from before its first container on: the first try has to succeed.
		conn, err := w.supply.machineOf(with.UID).agent.DialAddress(t.Context(), service)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(conn); err != nil || string(got) != "API server" {
			t.Errorf("the pod reads %q: %v", got, err)
		}
	}
	reaches()
	if conn, err := w.supply.machineOf(without.UID).agent.DialAddress(t.Context(), service); err == nil {
		_ = conn.Close()
		t.Error("a pod without a token reaches the API server")
	}
	node.stop()
	w.run(led)
	w.awaitPhase("with", corev1.PodRunning)
	reaches()
}
