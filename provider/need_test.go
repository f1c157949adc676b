// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"encoding/json"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestNeedOf(t *testing.T) {
	for _, tt := range []struct {
		name, spec string
		want       Need
	}{
		{"nothing", `{"containers":[{}]}`, Need{}},
		{"main containers add up", `{"containers":[{"resources":{"requests":{"cpu":"1","memory":"1"}}},{"resources":{"requests":{"cpu":"500m","memory":"2"}}}]}`, Need{MilliCPURequest: 1500, MemoryRequestBytes: 3}},
		{"a limit stands for a missing request", `{"containers":[{"resources":{"limits":{"cpu":"1","memory":"1"}}}]}`, Need{1000, 1000, 1, 1}},
		{"a limit that one lacks is none", `{"containers":[{"resources":{"limits":{"cpu":"1","memory":"1"}}},{"resources":{"limits":{"cpu":"1"}}}]}`, Need{2000, 2000, 1, 0}},
		{"init containers come one after the other", `{"initContainers":[{"resources":{"requests":{"cpu":"3"}}},{"resources":{"requests":{"memory":"9"}}}],"containers":[{"resources":{"requests":{"cpu":"1","memory":"1"}}}]}`,
			Need{MilliCPURequest: 3000, MemoryRequestBytes: 9}},
		{"sidecars run beside what follows", `{"initContainers":[{"resources":{"requests":{"cpu":"3"}}},{"restartPolicy":"Always","resources":{"requests":{"cpu":"1"}}},{"resources":{"requests":{"cpu":"4"}}}],"containers":[{"resources":{"requests":{"cpu":"1"}}}]}`,
			Need{MilliCPURequest: 5000}},
		{"and beside the main containers", `{"initContainers":[{"restartPolicy":"Always","resources":{"requests":{"cpu":"1"}}}],"containers":[{"resources":{"requests":{"cpu":"2"}}}]}`, Need{MilliCPURequest: 3000}},
		{"limits as well", `{"initContainers":[{"restartPolicy":"Always","resources":{"limits":{"cpu":"1"}}},{"resources":{"limits":{"cpu":"4"}}}],"containers":[{"resources":{"limits":{"cpu":"2"}}}]}`, Need{5000, 5000, 0, 0}},
		{"an init container without a limit", `{"initContainers":[{}],"containers":[{"resources":{"limits":{"memory":"2"}}}]}`, Need{MemoryRequestBytes: 2}},
		{"an ephemeral container counts for nothing", `{"containers":[{"resources":{"limits":{"memory":"2"}}}],"ephemeralContainers":[{}]}`, Need{MemoryRequestBytes: 2, MemoryLimitBytes: 2}},
		{"the pod's own request", `{"resources":{"requests":{"cpu":"7"}},"containers":[{"resources":{"requests":{"cpu":"2","memory":"2"}}}]}`, Need{MilliCPURequest: 7000, MemoryRequestBytes: 2}},
		{"the pod's own limit", `{"resources":{"requests":{"memory":"3"},"limits":{"memory":"5"}},"containers":[{"resources":{"limits":{"memory":"4"}}},{}]}`, Need{MemoryRequestBytes: 3, MemoryLimitBytes: 5}},
		{"overhead is not the containers'", `{"overhead":{"cpu":"7"},"containers":[{"resources":{"requests":{"cpu":"2"}}}]}`, Need{MilliCPURequest: 2000}},
	} {
		pod := &corev1.Pod{}
		if err := json.Unmarshal([]byte(tt.spec), &pod.Spec); err != nil {
			t.Fatal(err)
		}
		if got := needOf(pod); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

func TestHostnames(t *testing.T) {
	dns := DNS{Domain: "cluster.local"}
	long := strings.Repeat("a", 40)
	for _, tt := range []struct{ name, spec, host, entry, fault string }{
		{"p", `{}`, "p", "p", ""},
		{"p", `{"hostname":"h"}`, "h", "h", ""},
		{"p", `{"hostname":"h","subdomain":"s"}`, "h", "h.s.ns.svc.cluster.local\th", ""},
		{"p", `{"subdomain":"s","setHostnameAsFQDN":true}`, "p.s.ns.svc.cluster.local", "p.s.ns.svc.cluster.local\tp", ""},
		{"p", `{"setHostnameAsFQDN":true}`, "p", "p", ""},
		{"p", `{"hostname":"` + long + `a","subdomain":"s","setHostnameAsFQDN":true}`, long + "a.s.ns.svc.cluster.local", long + "a.s.ns.svc.cluster.local\t" + long + "a", ""},
		{"p", `{"hostname":"` + long + "aa" + `","subdomain":"s","setHostnameAsFQDN":true}`, "", long + "aa.s.ns.svc.cluster.local\t" + long + "aa", "is too long (64 characters is the max, 65 characters"},
		{strings.Repeat("b", 62) + "-x", `{}`, strings.Repeat("b", 62), strings.Repeat("b", 62), ""},
		{"p", `{"hostnameOverride":"x.y","subdomain":"s"}`, "x.y", "x.y", ""},
	} {
		pod := &corev1.Pod{}
		pod.Name, pod.Namespace = tt.name, "ns"
		if err := json.Unmarshal([]byte(tt.spec), &pod.Spec); err != nil {
			t.Fatal(err)
		}
		got, err := kernelHostname(pod, dns)
		if got != tt.host || (err != nil) != (tt.fault != "") || err != nil && !strings.Contains(err.Error(), tt.fault) {
			t.Errorf("%s: %q, %v", tt.spec, got, err)
		}
		if h := string(hosts(pod, dns, "10.0.2.15")); !strings.Contains(h, "10.0.2.15\t"+tt.entry+"\n") {
			t.Errorf("%s: hosts are %q", tt.spec, h)
		}
	}
}

func TestResolvConfLimits(t *testing.T) {
	c := &corev1.PodDNSConfig{Nameservers: []string{"1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"}}
	for range 9 {
		c.Searches = append(c.Searches, strings.Repeat(string(rune('a'+len(c.Searches))), 250))
	}
	pod := &corev1.Pod{Spec: corev1.PodSpec{DNSPolicy: corev1.DNSNone, DNSConfig: c}}
	r := resolvConf(pod, DNS{})
	if len(r.cut) != 2 || strings.Count(string(r.content), "nameserver ") != 3 || strings.Contains(string(r.content), "4.4.4.4") || !strings.Contains(string(r.content), "hhh\n") || strings.Contains(string(r.content), "iii") {
		t.Errorf("%+v\n%s", r.cut, r.content)
	}
}
