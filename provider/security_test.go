// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// securedPod is a pod with this specification, whose containers have names.
func securedPod(t *testing.T, spec string) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	if err := json.Unmarshal([]byte(spec), &pod.Spec); err != nil {
		t.Fatal(err)
	}
	return pod
}

func TestSecurityOf(t *testing.T) {
	runtimeDefault := &agentv1.Seccomp{Type: agentv1.SeccompType_SECCOMP_TYPE_RUNTIME_DEFAULT}
	localhost := &agentv1.Seccomp{Type: agentv1.SeccompType_SECCOMP_TYPE_LOCALHOST}
	for _, tt := range []struct {
		spec string
		want *agentv1.Security
	}{
		{`{"containers":[{}]}`, &agentv1.Security{}},
		{`{"containers":[{"securityContext":{"privileged":false,"allowPrivilegeEscalation":true,"procMount":"Default"}}]}`, &agentv1.Security{}},
		{`{"containers":[{"securityContext":{"allowPrivilegeEscalation":false,"capabilities":{"drop":["ALL"],"add":["NET_BIND_SERVICE"]}}}]}`,
			&agentv1.Security{NoNewPrivileges: true, DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}}},
		{`{"containers":[{"securityContext":{"procMount":"Unmasked"}}]}`, &agentv1.Security{UnmaskedProc: true}},
		{`{"securityContext":{"seccompProfile":{"type":"RuntimeDefault"}},"containers":[{}]}`, &agentv1.Security{Seccomp: runtimeDefault}},
		{`{"securityContext":{"seccompProfile":{"type":"RuntimeDefault"}},"containers":[{"securityContext":{"runAsUser":1}}]}`, &agentv1.Security{Seccomp: runtimeDefault}},
		{`{"securityContext":{"seccompProfile":{"type":"RuntimeDefault"}},"containers":[{"securityContext":{"seccompProfile":{"type":"Unconfined"}}}]}`, &agentv1.Security{}},
		{`{"securityContext":{"seccompProfile":{"type":"RuntimeDefault"}},"containers":[{"securityContext":{"seccompProfile":{"type":"Localhost","localhostProfile":"x"}}}]}`, &agentv1.Security{Seccomp: localhost}},
		{`{"securityContext":{"seccompProfile":{"type":"RuntimeDefault"}},"containers":[{"securityContext":{"privileged":true}}]}`, &agentv1.Security{Privileged: true}},
	} {
		pod := securedPod(t, tt.spec)
		if diff := cmp.Diff(tt.want, securityOf(pod, &pod.Spec.Containers[0]), protocmp.Transform()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.spec, diff)
		}
	}
}

func TestStrictGroups(t *testing.T) {
	for policy, want := range map[string]bool{"Strict": true, "Merge": false} {
		pod := securedPod(t, `{"securityContext":{"supplementalGroups":[7],"fsGroup":8,"supplementalGroupsPolicy":"`+policy+`"},"containers":[{}]}`)
		u, err := userOf(pod, &pod.Spec.Containers[0], "app")
		if err != nil || u.GetStrictGroups() != want || len(u.GetSupplementalGroups()) != 2 {
			t.Errorf("%s: %v %v", policy, u, err)
		}
	}
}

func TestLocalhostProfile(t *testing.T) {
	state := t.TempDir()
	dir := filepath.Join(state, "seccomp")
	for _, d := range []string{"deep", "folder"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, data := range map[string]string{"seccomp/deep/p.json": "profile", "secret": "secret", "seccomp/big": strings.Repeat("x", maxSeccompProfile+1)} {
		if err := os.WriteFile(filepath.Join(state, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../secret", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ profile, want, fault string }{
		{`{"type":"RuntimeDefault"}`, "", ""},
		{`{"type":"Localhost","localhostProfile":"deep/p.json"}`, "profile", ""},
		{`{"type":"Localhost","localhostProfile":"deep/none.json"}`, "", `"deep/none.json"`},
		{`{"type":"Localhost","localhostProfile":"folder"}`, "", "regular"},
		{`{"type":"Localhost","localhostProfile":"../secret"}`, "", "leads out"},
		{`{"type":"Localhost","localhostProfile":"/etc/passwd"}`, "", "leads out"},
		{`{"type":"Localhost","localhostProfile":"link"}`, "", `"link"`},
		{`{"type":"Localhost","localhostProfile":"big"}`, "", "more than"},
	} {
		pod := securedPod(t, `{"containers":[{"securityContext":{"seccompProfile":`+tt.profile+`}}]}`)
		data, err := localhostProfile(dir, pod, &pod.Spec.Containers[0])
		var start *startError
		switch {
		case tt.fault == "" && (err != nil || string(data) != tt.want):
			t.Errorf("%s: %q %v", tt.profile, data, err)
		case tt.fault != "" && (!errors.As(err, &start) || start.reason != reasonCreateError || !strings.Contains(start.message, tt.fault)):
			t.Errorf("%s: %q %v, want %q", tt.profile, data, err, tt.fault)
		case err != nil && strings.Contains(start.message, state):
			t.Errorf("%s: the message shows the node's directory: %s", tt.profile, start.message)
		}
	}
	// Nobody made the directory.
	pod := securedPod(t, `{"containers":[{"securityContext":{"seccompProfile":{"type":"Localhost","localhostProfile":"p"}}}]}`)
	if _, err := localhostProfile(filepath.Join(state, "none"), pod, &pod.Spec.Containers[0]); err == nil {
		t.Error("a profile was read from a directory that is not there")
	}
}

func TestOOMScoreAdj(t *testing.T) {
	const memory = 1 << 30
	for _, tt := range []struct {
		name, spec string
		class      corev1.PodQOSClass
		memory     int64
		want       []int32
	}{
		{"unknown class", `{"containers":[{}]}`, "", memory, []int32{0}},
		{"best effort", `{"containers":[{}]}`, corev1.PodQOSBestEffort, memory, []int32{1000}},
		{"guaranteed", `{"containers":[{"resources":{"requests":{"memory":"1Gi"}}}]}`, corev1.PodQOSGuaranteed, memory, []int32{-997}},
		{"critical", `{"priority":2000001000,"containers":[{}]}`, corev1.PodQOSBestEffort, memory, []int32{-997}},
		{"cluster critical", `{"priority":2000000000,"containers":[{}]}`, corev1.PodQOSBestEffort, memory, []int32{1000}},
		{"burstable", `{"containers":[{"resources":{"requests":{"memory":"256Mi"}}},{},{"resources":{"requests":{"memory":"1Gi"}}},{"resources":{"requests":{"memory":"8Gi"}}}]}`,
			corev1.PodQOSBurstable, memory, []int32{750, 999, 3, 3}},
		{"no memory", `{"containers":[{"resources":{"requests":{"memory":"256Mi"}}}]}`, corev1.PodQOSBurstable, 0, []int32{999}},
		{"sidecar", `{"initContainers":[{"restartPolicy":"Always"},{"restartPolicy":"Always","resources":{"requests":{"memory":"768Mi"}}},{}],"containers":[{"resources":{"requests":{"memory":"512Mi"}}},{"resources":{"requests":{"memory":"768Mi"}}}]}`,
			corev1.PodQOSBurstable, memory, []int32{500, 250, 999, 500, 250}},
		{"of the pod", `{"resources":{"requests":{"memory":"512Mi"}},"containers":[{"resources":{"requests":{"memory":"256Mi"}}},{}]}`, corev1.PodQOSBurstable, memory, []int32{625, 875}},
	} {
		pod := securedPod(t, tt.spec)
		pod.Status.QOSClass = tt.class
		var got []int32
		for c := range containersOf(pod) {
			got = append(got, oomScoreAdj(pod, c.Container, c.kind, tt.memory))
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestSysctlsOf(t *testing.T) {
	if got := sysctlsOf(securedPod(t, `{}`)); got != nil {
		t.Errorf("%v", got)
	}
	pod := securedPod(t, `{"securityContext":{"sysctls":[{"name":"kernel.shm_rmid_forced","value":"1"},{"name":"net/ipv4/conf/eth0.1/forwarding","value":"0"},{"name":"net.ipv4.conf.eth0/1.forwarding","value":"0"}]}}`)
	want := []*agentv1.Sysctl{{Name: "kernel.shm_rmid_forced", Value: "1"}, {Name: "net.ipv4.conf.eth0/1.forwarding", Value: "0"}, {Name: "net.ipv4.conf.eth0/1.forwarding", Value: "0"}}
	if diff := cmp.Diff(want, sysctlsOf(pod), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	for _, tt := range []struct {
		pod  *corev1.Pod
		err  error
		want bool
	}{
		{pod, connect.NewError(connect.CodeInvalidArgument, errors.New("set sysctl kernel.x: no such parameter")), true},
		{pod, connect.NewError(connect.CodeUnavailable, errors.New("set sysctl")), false},
		{pod, connect.NewError(connect.CodeInvalidArgument, errors.New("hosts has too many bytes")), false},
		{&corev1.Pod{}, connect.NewError(connect.CodeInvalidArgument, errors.New("sysctls")), false},
	} {
		if got := sysctlFault(tt.pod, tt.err); got != tt.want {
			t.Errorf("%v: %v", tt.err, got)
		}
	}
}

// TestCreateRequestSecurity: what is decided elsewhere arrives in the request.
func TestCreateRequestSecurity(t *testing.T) {
	pod := securedPod(t, `{"containers":[{"command":["x"],"securityContext":{"seccompProfile":{"type":"Localhost","localhostProfile":"p"},"allowPrivilegeEscalation":false}}]}`)
	pod.Status.QOSClass = corev1.PodQOSBestEffort
	j := startJob{pod: pod, plan: containerPlan{spec: &pod.Spec.Containers[0]}, image: &Image{}, memory: 1 << 30, profile: []byte("{}")}
	req, err := createRequest(j, &variables{})
	if err != nil {
		t.Fatal(err)
	}
	if s := req.GetSecurity(); string(s.GetSeccomp().GetProfile()) != "{}" || !s.GetNoNewPrivileges() || req.GetResources().GetOomScoreAdj() != 1000 || req.GetTerminationMessagePath() != corev1.TerminationMessagePathDefault {
		t.Errorf("%v", req)
	}
	j.macOS = true
	if req, err = createRequest(j, &variables{}); err != nil || req.Security != nil || req.GetTerminationMessagePath() != "" {
		t.Errorf("for macOS: %v %v", req, err)
	}
}
