// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/vk-firkin/vk-firkin/provider/pressure"
	"github.com/vk-firkin/vk-firkin/vm"
)

func parseNode(t *testing.T, args ...string) nodeOptions {
	t.Helper()
	var o nodeOptions
	flags := pflag.NewFlagSet("node", pflag.ContinueOnError)
	o.addFlags(flags)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	return o
}

var complete = []string{"--kubeconfig", "k", "--node-name", "mac", "--tls-cert-file", "c", "--tls-private-key-file", "k", "--client-ca-file", "a", "--state-dir", "s", "--cache-dir", "c"}

func TestNodeOptions(t *testing.T) {
	s, err := parseNode(t, append(complete, "--shapes", "1x256Mi,2x1Gi", "--min-free-disk", "0")...).complete()
	if err != nil {
		t.Fatal(err)
	}
	want := []vm.Shape{{VCPUs: 1, MemoryBytes: 256 << 20}, {VCPUs: 2, MemoryBytes: 1 << 30}}
	if diff := cmp.Diff(want, s.ladder); diff != "" {
		t.Errorf("shapes (-want +got):\n%s", diff)
	}
	if s.refillMinFreeDisk != 20<<30 || s.MaxPending != 64 {
		t.Errorf("refillMinFreeDisk %d, max pending %d", s.refillMinFreeDisk, s.MaxPending)
	}
	if s.minFreeDisk != 0 || s.reservedMemory != 1<<30 {
		t.Errorf("minFreeDisk %d, reservedMemory %d", s.minFreeDisk, s.reservedMemory)
	}
	if !strings.HasPrefix(s.StateDir, "/") {
		t.Errorf("state folder %q is not absolute", s.StateDir)
	}
}

func TestNodeOptionsOfTheNode(t *testing.T) {
	s, err := parseNode(t, append(complete, "--node-ip", "192.0.2.1,2001:db8::1", "--cluster-dns", "192.0.2.53",
		"--node-labels", "team=a,topology.kubernetes.io/zone=z,node.kubernetes.io/instance-type=mac2,example.test/x=y")...).complete()
	if err != nil {
		t.Fatal(err)
	}
	if s.DrainOnShutdown || s.ClusterDomain != "cluster.local" || s.ShutdownGrace != 30*time.Second || s.ShutdownCritical != 10*time.Second || len(s.NodeLabels) != 4 {
		t.Errorf("settings are %+v", s.nodeOptions)
	}
}

// Filling pools never leaves less free than what pods need.
func TestRefillFloor(t *testing.T) {
	s, err := parseNode(t, append(complete, "--min-free-disk", "30Gi", "--refill-min-free-disk", "1Gi")...).complete()
	if err != nil || s.refillMinFreeDisk != 30<<30 {
		t.Errorf("floor is %d, %v", s.refillMinFreeDisk, err)
	}
}

// The default hard threshold is not above what the user says must be free; one that is given
// stands.
func TestEvictionFloors(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want pressure.Amount
	}{
		{nil, pressure.Amount{Bytes: 1 << 30}},
		{[]string{"--min-free-disk", "64Mi"}, pressure.Amount{Bytes: 64 << 20}},
		{[]string{"--eviction-hard", "nodefs.available<2Gi", "--min-free-disk", "64Mi"}, pressure.Amount{Bytes: 2 << 30}},
		{[]string{"--eviction-hard", "nodefs.available<5%"}, pressure.Amount{Percent: 5}},
		{[]string{"--eviction-hard", ""}, pressure.Amount{}},
	} {
		s, err := parseNode(t, append(slices.Clone(complete), tt.args...)...).complete()
		if err != nil {
			t.Fatal(err)
		}
		disk, _, memory := s.floors()
		if disk.Hard != tt.want || disk.Free != s.minFreeDisk || memory.Free != 0 {
			t.Errorf("%v: disk %+v, memory %+v", tt.args, disk, memory)
		}
	}
	s, err := parseNode(t, append(slices.Clone(complete), "--eviction-soft", "memory.available<1Gi", "--eviction-soft-grace-period", "memory.available=90s")...).complete()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, m := s.floors(); m.Soft.Bytes != 1<<30 || m.SoftGrace != 90*time.Second || m.Hard.Bytes != 100<<20 || m.Refill != 2<<30 {
		t.Errorf("memory %+v", m)
	}
}

// Every fault is named by its flag, all of them at once.
func TestNodeOptionFaults(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		want []string
	}{
		{"nothing given", []string{"--node-name", "mac", "--state-dir", "s"}, []string{"vk-firkin join", "--kubeconfig"}},
		{"two identities", append(complete, "--bootstrap-kubeconfig", "b"), []string{"--kubeconfig and --bootstrap-kubeconfig"}},
		{"half a serving certificate", []string{"--kubeconfig", "k", "--node-name", "mac", "--tls-cert-file", "c", "--state-dir", "s"}, []string{"--tls-private-key-file"}},
		{"two serving certificates", append(complete, "--self-signed-serving-certificate"), []string{"--self-signed-serving-certificate"}},
		{"names and addresses", append(complete, "--node-name", "Not_a_name", "--node-ip", "here", "--kubelet-port", "0"), []string{"--node-name", "--node-ip", "--kubelet-port"}},
		{"metrics on the network", append(complete, "--metrics-address", "0.0.0.0:1"), []string{"--metrics-address"}},
		{"shapes", append(complete, "--shapes", "big,1x1Mi"), []string{`"big"`, `"1x1Mi"`}},
		{"sizes", append(complete, "--reserved-memory", "-1", "--min-free-disk", "lots"), []string{"--reserved-memory", "--min-free-disk"}},
		{"volumes", append(complete, "--volume-refresh", "1ms", "--machine-stuck-timeout", "1s", "--allow-host-path", "/ok,relative"), []string{"--volume-refresh", "--machine-stuck-timeout", "--allow-host-path \"relative\""}},
		{"pools", append(complete, "--refills", "-1", "--refill-min-free-disk", "some", "--max-pending", "-1", "--pending-timeout", "0s"), []string{"--refills", "--refill-min-free-disk", "--max-pending", "--pending-timeout"}},
		{"two addresses of one family", append(complete, "--node-ip", "192.0.2.1,192.0.2.2"), []string{"--node-ip"}},
		{"labels", append(complete, "--node-labels", "a b=c,node-role.kubernetes.io/control-plane=,kubernetes.io/os=linux"), []string{"a b", "node-role", "kubernetes.io/os"}},
		{"name servers", append(complete, "--cluster-dns", "dns.example.test", "--cluster-domain", "No_domain"), []string{"--cluster-dns", "--cluster-domain"}},
		{"shutdown", append(complete, "--shutdown-grace-period", "5s", "--shutdown-grace-period-critical-pods", "6s", "--eviction-pressure-transition-period", "-1s"), []string{"--shutdown-grace-period", "--eviction-pressure-transition-period"}},
		{"collection and scrub", append(complete, "--gc-grace", "-1s", "--scrub-every", "1ms", "--scrub-rate", "12"), []string{"--gc-grace", "--scrub-every", "--scrub-rate"}},
		{"eviction", append(complete, "--eviction-hard", "nodefs.available=1Gi", "--eviction-soft", "memory.available<lots", "--eviction-soft-grace-period", "nodefs.available=1m", "--eviction-max-pod-grace-period", "-1"),
			[]string{"--eviction-hard", "--eviction-soft:", "--eviction-soft-grace-period", "--eviction-max-pod-grace-period"}},
		{"logs", append(complete, "--log-level", "loud"), []string{"--log-level"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("KUBECONFIG", "")
			_, err := parseNode(t, tt.args...).complete()
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error does not name %s: %v", want, err)
				}
			}
		})
	}
}

func TestDirectoriesFromEnvironment(t *testing.T) {
	t.Setenv("FIRKIN_STATE_DIR", "/somewhere/state")
	t.Setenv("FIRKIN_CACHE_DIR", "")
	t.Setenv("HOME", "/home/user")
	o := parseNode(t)
	if o.StateDir != "/somewhere/state" || o.CacheDir != "/home/user/.firkin/cache" {
		t.Errorf("state %q, cache %q", o.StateDir, o.CacheDir)
	}
}
