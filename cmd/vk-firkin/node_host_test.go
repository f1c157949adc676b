// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"slices"
	"strings"
	"testing"

	utilversion "k8s.io/apimachinery/pkg/util/version"
)

// Tools compare a kubelet's version with the control plane's, whatever ours is.
func TestKubeletVersion(t *testing.T) {
	for own, want := range map[string]string{
		"dev": kubernetesRelease + "+firkin.dev", "v0.1.0-3-gabc": kubernetesRelease + "+firkin.0.1.0-3-gabc", "0.1.0 (dirty)": kubernetesRelease + "+firkin.0.1.0--dirty-",
	} {
		got := kubeletVersion(own)
		v, err := utilversion.ParseSemantic(got)
		if err != nil || got != want || !v.EqualTo(utilversion.MustParseSemantic(kubernetesRelease)) {
			t.Errorf("%s: %q, want %q (%v)", own, got, want, err)
		}
	}
}

func TestImageNames(t *testing.T) {
	digest := "sha256:" + strings.Repeat("a", 64)
	for _, tt := range []struct{ refs, want []string }{
		{nil, []string{digest}},
		{[]string{"127.0.0.1:5000/busybox:1", "127.0.0.1:5000/busybox:2"}, []string{"127.0.0.1:5000/busybox@" + digest, "127.0.0.1:5000/busybox:1", "127.0.0.1:5000/busybox:2"}},
		{[]string{"127.0.0.1:5000/busybox@" + digest}, []string{"127.0.0.1:5000/busybox@" + digest}},
	} {
		if got := imageNames(tt.refs, digest); !slices.Equal(got, tt.want) {
			t.Errorf("%q: %q, want %q", tt.refs, got, tt.want)
		}
	}
}

// An API server on this host's loopback does not make the node's address loopback, when
// the host has another one.
func TestPrimaryAddress(t *testing.T) {
	got, err := primaryAddress("https://127.0.0.1:6443")
	if err != nil {
		t.Fatal(err)
	}
	outward, err := sourceAddress("192.0.2.1:443")
	if err != nil || !outward.IsGlobalUnicast() {
		t.Skipf("this host has no way out: %v", err)
	}
	if ip := net.ParseIP(got); ip == nil || ip.IsLoopback() || got != outward.String() {
		t.Errorf("address is %q, want %s", got, outward)
	}
}

func TestIdentify(t *testing.T) {
	if id := identify(t.Context()); id.boot == "" {
		t.Errorf("identity is %+v", id)
	}
}

func TestReadMemory(t *testing.T) {
	if m, err := readMemory(); err != nil || m.Available <= 0 || m.Available > m.Total {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestReadDisk(t *testing.T) {
	r, device, err := readDisk(t.TempDir())
	if err != nil || r.Total <= 0 || r.Available > r.Total || device == 0 {
		t.Errorf("%+v, %d, %v", r, device, err)
	}
	if _, _, err := readDisk("/does/not/exist"); err == nil {
		t.Error("what is not there is measured")
	}
}
