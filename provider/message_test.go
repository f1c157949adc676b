// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// A guest says how a run ended; whatever it says, the pod's status stays within its bounds.
func FuzzTermination(f *testing.F) {
	f.Add([]byte("last words"), "message", "OOMKilled", int32(137), int64(5), int64(9), []byte("log\n"))
	f.Add([]byte(strings.Repeat("é", 5000)), "", "StartError", int32(0), int64(-1), int64(1<<62), []byte(strings.Repeat("é", 1025)))
	f.Add([]byte{0xff, 0xfe}, "\xff", "Anything", int32(-5), int64(0), int64(0), []byte{0x80, 0x80})
	f.Fuzz(func(t *testing.T, file []byte, machine, reason string, code int32, started, finished int64, log []byte) {
		s := testState("Never", 5)
		c := s.containers[0]
		x := terminationOf(c, s, &agentv1.ContainerStatus{TerminationMessage: file, Message: machine, Reason: reason, ExitCode: code, StartedUnixNano: started, FinishedUnixNano: finished}, time.Now())
		if len(x.Message) > maxStatusMessage+3*len(file) || len(x.Message) > 3*maxStatusMessage || !utf8.ValidString(x.Message) || x.FinishedAt.After(time.Now().Add(2*guestTimeSlack)) {
			t.Errorf("%+v", x)
		}
		if m := tailMessage(log); len(m) > 3*maxTailBytes || !utf8.ValidString(m) {
			t.Errorf("%q", m)
		}
		for _, c := range s.containers {
			c.step, c.exit, c.last, c.drained = containerExited, x, x, true
		}
		total := 0
		for _, c := range podStatus(s, &corev1.PodStatus{}, "", time.Now()).ContainerStatuses {
			total += len(c.State.Terminated.Message)
		}
		if total > maxPodMessages {
			t.Errorf("the messages have %d bytes", total)
		}
	})
}

func TestTerminationMessages(t *testing.T) {
	if got := lastWords([]byte("words"), "machine"); got != "words" {
		t.Errorf("%q", got)
	}
	if got := lastWords(nil, "machine"); got != "machine" {
		t.Errorf("%q", got)
	}
	if got := lastWords([]byte(strings.Repeat("x", 5000)), ""); len(got) != maxStatusMessage {
		t.Errorf("%d bytes", len(got))
	}
	if got := tailMessage([]byte("é" + strings.Repeat("x", maxTailBytes-1))); got != strings.Repeat("x", maxTailBytes-1) {
		t.Errorf("half a character stays: %q...", got[:4])
	}
}

// The machine is told where a container's last words are, and whose processes it shares.
func TestCreateRequestOfMessageAndTarget(t *testing.T) {
	for path, want := range map[string]string{"": "/dev/termination-log", "/tmp/x": "/tmp/x"} {
		j := startJob{pod: &corev1.Pod{}, image: &Image{}, target: "t", plan: containerPlan{spec: &corev1.Container{Command: []string{"x"}, TerminationMessagePath: path}}}
		req, err := createRequest(j, &variables{})
		if err != nil || req.GetTerminationMessagePath() != want || req.GetTargetContainer() != "t" {
			t.Errorf("%q gives %+v, %v", path, req, err)
		}
		j.macOS = true
		if req, err = createRequest(j, &variables{}); err != nil || req.GetTerminationMessagePath() != "" {
			t.Errorf("in a macOS guest: %+v, %v", req, err)
		}
	}
}

// FuzzPlan: no specification of a pod breaks its translation.
func FuzzPlan(f *testing.F) {
	f.Add([]byte(`{"containers":[{"name":"a","image":"i"}]}`))
	f.Add([]byte(`{"initContainers":[{"name":"i","restartPolicy":"Always","lifecycle":{"stopSignal":"SIGRTMIN+99"}}],"containers":[{"name":"a","image":"i@sha256:x"}],"ephemeralContainers":[{"name":"e","targetContainerName":"a"}],"activeDeadlineSeconds":-1}`))
	f.Add([]byte(`{"terminationGracePeriodSeconds":-9223372036854775808,"hostnameOverride":"","hostname":".","subdomain":".","setHostnameAsFQDN":true,"dnsConfig":{"searches":["` + strings.Repeat("x", 3000) + `"],"options":[{"name":""}]}}`))
	f.Add([]byte(`{"resources":{"requests":{"cpu":"1e30"}},"containers":[{"name":"a","restartPolicy":"Never","restartPolicyRules":[{"action":"Restart"}],"resources":{"limits":{"memory":"-1"}}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		pod := &corev1.Pod{}
		if json.Unmarshal(data, &pod.Spec) != nil {
			return
		}
		pod.Name, pod.Namespace = "p", "ns"
		p := planOf(pod)
		if n := len(pod.Spec.InitContainers) + len(pod.Spec.Containers) + len(pod.Spec.EphemeralContainers); len(p.containers) != n || p.inits() > len(pod.Spec.InitContainers) {
			t.Errorf("%d containers of %d", len(p.containers), n)
		}
		unsupported(pod)
		resolvConf(pod, DNS{})
		hosts(pod, DNS{Domain: "d"}, "10.0.2.15")
		if name, err := kernelHostname(pod, DNS{Domain: "d"}); err == nil && len(name) > maxKernelHostname {
			t.Errorf("host name %q", name)
		}
		s := &state{pod: pod, plan: p, startTime: t0, images: map[imageKey]*imageState{}}
		for _, key := range imagesOf(s) {
			s.images[key] = &imageState{}
		}
		for i := range p.containers {
			s.containers = append(s.containers, &containerState{name: p.containers[i].spec.Name})
		}
		decide(s, t0)
		podStatus(s, &corev1.PodStatus{}, "", t0)
	})
}

// What a process that adopts has to know is in the record, and old records are still read.
func TestRecordOfAnEnd(t *testing.T) {
	r := newRecords(t.TempDir(), durable.Host)
	s := steps(kinds(testState("Always", 3), "sim"), "r0r")
	s.machine.passed = 2
	s.containers[2].postStart = hookOver
	killed(s, time.Minute, true)
	if err := r.save(recordOf(s)); err != nil {
		t.Fatal(err)
	}
	recs, faults, err := r.load()
	if err != nil || len(recs) != 1 || len(faults) != 0 {
		t.Fatalf("%v, %v", recs, faults)
	}
	want := *s.kill
	want.listed = false
	if got := recs[0].Kill.state(t0); !reflect.DeepEqual(*got, want) {
		t.Errorf("kill is %+v, want %+v", got, want)
	}
	if recs[0].Machine.Passed != 2 || restoreContainer(recs[0], "c", t0).postStart != hookOver || restoreContainer(recs[0], "a", t0).postStart != hookNone {
		t.Errorf("record is %+v", recs[0])
	}
	if (*killRecord)(nil).state(t0) != nil {
		t.Error("an old record has a kill")
	}
}
