// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func TestAdmissible(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"zone": "a", corev1.LabelArchStable: "arm64"}}}
	tainted := node.DeepCopy()
	tainted.Spec.Taints = []corev1.Taint{{Key: "prefer", Effect: corev1.TaintEffectNoSchedule}, {Key: "out", Value: "now", Effect: corev1.TaintEffectNoExecute}}
	require := func(key string, values ...string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: key, Operator: corev1.NodeSelectorOpIn, Values: values}}}},
			}}}
		}
	}
	tolerate := func(key string, effect corev1.TaintEffect) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: effect})
		}
	}
	priority := func(n int32) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Spec.Priority = &n } }
	qos := func(q corev1.PodQOSClass) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Status.QOSClass = q } }
	port := func(ip string, n int32) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 1, HostPort: n, HostIP: ip}}
		}
	}
	storage := func(text string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse(text)}
		}
	}
	with := func(changes ...func(*corev1.Pod)) *corev1.Pod {
		p := portPod()
		p.Status.QOSClass = corev1.PodQOSBestEffort
		for _, c := range changes {
			c(p)
		}
		return p
	}
	few := Capacity(0, 0, 10<<30, 2)
	holds := func(pods ...*corev1.Pod) (list []claim) {
		for _, p := range pods {
			list = append(list, claimOf(p))
		}
		return list
	}
	memory, disk, pid := corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure
	type pressures = []corev1.NodeConditionType
	for name, tt := range map[string]struct {
		pod    *corev1.Pod
		facts  nodeFacts
		reason string
		text   string
	}{
		"an ordinary pod":               {with(), nodeFacts{node: node, allocatable: few}, "", ""},
		"a node that is not known":      {with(require("zone", "b")), nodeFacts{}, "", ""},
		"shutdown":                      {with(priority(systemCriticalClass)), nodeFacts{closing: true}, "NodeShutdown", "shutting down"},
		"its selector":                  {with(func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"zone": "a"} }), nodeFacts{node: node}, "", ""},
		"another selector":              {with(func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"zone": "b"} }), nodeFacts{node: node}, "NodeAffinity", "node affinity/selector"},
		"another architecture":          {with(func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{corev1.LabelArchStable: "amd64"} }), nodeFacts{node: node}, "NodeAffinity", ""},
		"its affinity":                  {with(require("zone", "b", "a")), nodeFacts{node: node}, "", ""},
		"another affinity":              {with(require("zone", "b")), nodeFacts{node: node}, "NodeAffinity", ""},
		"another system":                {with(func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} }), nodeFacts{}, "PodOSNotSupported", "spec.os.name"},
		"its system":                    {with(func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Linux} }), nodeFacts{}, "", ""},
		"another system by label":       {with(func(p *corev1.Pod) { p.Labels = map[string]string{corev1.LabelOSStable: "windows"} }), nodeFacts{}, "PodOSSelectorNodeLabelDoesNotMatch", ""},
		"a taint":                       {with(), nodeFacts{node: tainted}, "TaintToleration", "out=now:NoExecute"},
		"a taint that it tolerates":     {with(tolerate("out", corev1.TaintEffectNoExecute)), nodeFacts{node: tainted}, "", ""},
		"another taint tolerated":       {with(tolerate("prefer", "")), nodeFacts{node: tainted}, "TaintToleration", ""},
		"the last place":                {with(), nodeFacts{allocatable: few, others: holds(with())}, "", ""},
		"too many pods":                 {with(), nodeFacts{allocatable: few, others: holds(with(), with())}, "OutOfpods", "requested: 1, used: 2, capacity: 2"},
		"room on disk":                  {with(storage("6Gi")), nodeFacts{allocatable: few, others: holds(with(storage("4Gi")))}, "", ""},
		"no room on disk":               {with(storage("6Gi")), nodeFacts{allocatable: few, others: holds(with(storage("5Gi")))}, "OutOfephemeral-storage", ""},
		"no wish for disk":              {with(), nodeFacts{allocatable: few, others: holds(with(storage("20Gi")))}, "", ""},
		"a port":                        {with(port("", 80)), nodeFacts{others: holds(with(port("", 81)))}, "", ""},
		"a port that is taken":          {with(port("127.0.0.1", 80)), nodeFacts{others: holds(with(), with(port("0.0.0.0", 80)))}, "NodePorts", "127.0.0.1:80/TCP"},
		"disk pressure":                 {with(qos(corev1.PodQOSGuaranteed)), nodeFacts{pressures: pressures{disk}}, "Evicted", "DiskPressure"},
		"a critical pod under pressure": {with(priority(systemCriticalClass)), nodeFacts{pressures: pressures{disk, memory}}, "", ""},
		"nearly critical":               {with(priority(systemCriticalClass - 1)), nodeFacts{pressures: pressures{pid}}, "Evicted", "PIDPressure"},
		"memory pressure":               {with(), nodeFacts{pressures: pressures{memory}}, "Evicted", "MemoryPressure"},
		"memory pressure, requests":     {with(qos(corev1.PodQOSBurstable)), nodeFacts{pressures: pressures{memory}}, "", ""},
		"memory pressure, tolerated":    {with(tolerate(corev1.TaintNodeMemoryPressure, "")), nodeFacts{pressures: pressures{memory}}, "", ""},
		"memory and disk pressure":      {with(qos(corev1.PodQOSBurstable)), nodeFacts{pressures: pressures{memory, disk}}, "Evicted", ""},
	} {
		got := admissible(tt.pod, &tt.facts)
		if got == nil {
			got = &refusal{}
		}
		if got.Reason != tt.reason || !strings.Contains(got.Message, tt.text) {
			t.Errorf("%s: %+v, want %q with %q", name, got, tt.reason, tt.text)
		}
	}
}

// What a pod was given is its own until it is given back, and counts once. Labels that
// changed a moment ago are looked up before they refuse a pod.
func TestAdmission(t *testing.T) {
	asked := 0
	a := &admission{
		allocatable: Capacity(0, 0, 1<<30, 2), claims: map[types.UID]claim{},
		own: claim{ports: hostPorts(portPod(corev1.ContainerPort{HostPort: 10250, HostIP: "192.0.2.1"}))},
		node: func(_ context.Context, fresh bool) *corev1.Node {
			n := &corev1.Node{}
			if fresh {
				asked++
				n.Labels = map[string]string{"new": "label"}
			}
			return n
		},
	}
	pod := func(uid string, port int32) *corev1.Pod {
		p := portPod(corev1.ContainerPort{ContainerPort: 1, HostPort: port})
		p.UID = types.UID(uid)
		return p
	}
	try := func(p *corev1.Pod, want string) {
		t.Helper()
		got := ""
		if r := a.admit(t.Context(), p); r != nil {
			got = r.Reason
		}
		if got != want {
			t.Errorf("pod %s: %q, want %q", p.UID, got, want)
		}
	}
	try(pod("one", 80), "")
	try(pod("one", 80), "") // it has it already
	try(pod("two", 80), "NodePorts")
	try(pod("node's", 10250), "NodePorts")
	a.forget("one")
	try(pod("two", 80), "")
	a.hold(pod("adopted", 81))
	try(pod("three", 82), "OutOfpods")
	a.forget("two")
	labelled := pod("labelled", 83)
	labelled.Spec.NodeSelector = map[string]string{"new": "label"}
	try(labelled, "")
	labelled.UID, labelled.Spec.NodeSelector = "other", map[string]string{"new": "other"}
	a.forget("labelled")
	try(labelled, "NodeAffinity")
	if asked != 2 {
		t.Errorf("the server was asked %d times", asked)
	}
	a.press([]corev1.NodeCondition{{Type: corev1.NodeDiskPressure, Status: corev1.ConditionTrue}, {Type: corev1.NodeReady, Status: corev1.ConditionTrue}})
	try(pod("late", 84), "Evicted")
	a.press([]corev1.NodeCondition{{Type: corev1.NodeDiskPressure, Status: corev1.ConditionFalse}})
	a.close()
	try(pod("late", 84), "NodeShutdown")
}

// Who holds pods off for a while lets them in again, and not when the node shuts down meanwhile.
func TestHoldOff(t *testing.T) {
	a := &admission{claims: map[types.UID]claim{}}
	refused := func() bool { return a.try(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "new"}}, nil) != nil }
	first, second := a.holdOff(), a.holdOff()
	first()
	first()
	if !refused() || !a.isClosing() {
		t.Error("pods are let in while one of two holds them off")
	}
	a.close()
	second()
	if !refused() {
		t.Error("pods are let in while the node shuts down")
	}
	a.closing = false
	if refused() {
		t.Error("pods are refused")
	}
}
