// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"reflect"
	"slices"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// kinds makes the first containers of a state of these kinds: i, s, m, e.
func kinds(s *state, of string) *state {
	for i, k := range of {
		kind := map[rune]containerKind{'i': kindInit, 's': kindSidecar, 'm': kindMain, 'e': kindEphemeral}[k]
		c := &s.plan.containers[i]
		c.kind = kind
		spec := corev1.Container{Name: c.spec.Name, Image: "i"}
		switch kind {
		case kindInit:
			s.pod.Spec.InitContainers = append(s.pod.Spec.InitContainers, spec)
		case kindSidecar:
			always := corev1.ContainerRestartPolicyAlways
			spec.RestartPolicy = &always
			s.pod.Spec.InitContainers = append(s.pod.Spec.InitContainers, spec)
		case kindMain:
			s.pod.Spec.Containers = append(s.pod.Spec.Containers, spec)
		case kindEphemeral:
			s.pod.Spec.EphemeralContainers = append(s.pod.Spec.EphemeralContainers, corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon(spec)})
		}
		c.spec = &spec
	}
	return s
}

// steps puts the containers into states: w waiting, b in back-off, s starting, r running,
// 0 and 1 exited with that code and drained, u unknown, h running with its postStart hook,
// p running with a preStop hook, q with one that runs.
func steps(s *state, of string) *state {
	for i, k := range of {
		c, p := s.containers[i], &s.plan.containers[i]
		switch k {
		case 'b':
			c.notBefore, c.attempt, c.last = t0.Add(time.Second), 1, &termination{ExitCode: 1}
		case 's':
			c.step = containerStarting
		case 'r':
			c.step, c.startedAt = containerRunning, t0
		case 'u':
			c.step = containerUnknown
		case '0', '1':
			exited(c, k-'0', true)
		case 'h':
			c.step, c.postStart = containerRunning, hookRunning
			p.spec.Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{}}
		case 'p', 'q':
			c.step = containerRunning
			if k == 'q' {
				c.preStop = hookRunning
			}
			p.spec.Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{}}
		}
	}
	return s
}

func TestDecideOrder(t *testing.T) {
	none := func(d decision) decision { d.start = -1; return d }
	over := func(grace time.Duration) decision {
		return none(decision{kill: &podKill{settled: true, ending: ending{since: t0, grace: grace}}})
	}
	for _, tt := range []struct {
		name, policy, kinds, steps string
		change                     func(*state)
		want                       decision
	}{
		{"the first init container begins", "Always", "iim", "www", nil, decision{start: 0}},
		{"nothing beside an init container that runs", "Always", "iim", "rww", nil, none(decision{})},
		{"the second init container", "Always", "iim", "0ww", nil, decision{start: 1}},
		{"main after the last init container", "Always", "iim", "00w", nil, decision{start: 2}},
		{"a completed init container is not started again", "Always", "im", "0r", nil, none(decision{})},
		{"an init container that failed is tried again", "Always", "im", "1w", nil, none(decision{restart: []int{0}})},
		{"on failure as well", "OnFailure", "im", "1w", nil, none(decision{restart: []int{0}})},
		{"nothing passes an init container in back-off", "Always", "iim", "bww", nil, none(decision{wake: t0.Add(time.Second)})},
		{"never: a failed init container ends the pod", "Never", "im", "1w", nil, none(decision{finish: true})},
		{"never: and what runs beside it is stopped first", "Never", "sim", "r1w", nil, over(0)},
		{"a failed init container waits for its output", "Never", "im", "1w", func(s *state) { s.containers[0].drained = false }, none(decision{wake: t0.Add(drainWait)})},
		{"a sidecar that is up lets the next begin", "Always", "sim", "rww", nil, decision{start: 1}},
		{"a sidecar is waited for until its hook is over", "Always", "sm", "hw", nil, none(decision{})},
		{"the hook of a sidecar that has begun", "Always", "sm", "hw", func(s *state) { s.containers[0].postStart = hookNone }, none(decision{postStart: []int{0}})},
		{"a main container's hook holds up the next", "Always", "mm", "hw", nil, none(decision{})},
		{"but not when it failed", "Always", "mm", "hw", func(s *state) { s.containers[0].postStart = hookFailed }, decision{start: 1}},
		{"a sidecar that ended is restarted during init, whatever the policy", "Never", "sim", "0rw", func(s *state) { s.machine.passed = 1 }, none(decision{restart: []int{0}})},
		{"and starts beside the init container", "Never", "sim", "wrw", func(s *state) { s.machine.passed = 1 }, decision{start: 0}},
		{"a sidecar in back-off that was up holds nobody up", "Always", "sm", "bw", func(s *state) { s.machine.passed = 1 }, decision{start: 1, wake: t0.Add(time.Second)}},
		{"one that was not does", "Always", "sm", "bw", nil, none(decision{wake: t0.Add(time.Second)})},
		{"a sidecar that runs: the pod is over for its main containers", "Never", "sm", "r0", func(s *state) { s.plan.grace = time.Minute }, over(time.Minute)},
		{"a sidecar that ended is not restarted then", "Never", "sm", "00", nil, none(decision{finish: true})},
		{"an ephemeral container does not keep the pod", "Never", "me", "0r", nil, over(0)},
		{"one that was never started neither", "Never", "me", "0w", nil, none(decision{finish: true})},
		{"an ephemeral container begins during init", "Always", "ime", "rww", nil, decision{start: 2}},
		{"it is never started again", "Always", "me", "r1", nil, none(decision{})},
		{"one that is refused is not started", "Always", "me", "rw", func(s *state) { s.plan.containers[1].refused = "no" }, none(decision{})},
		{"its image is pulled beside what runs", "Always", "me", "rw", func(s *state) { late(s, nil) }, none(decision{pull: []imageKey{{"late", PullAlways}}})},
		{"an image that the machine does not have is no use", "Always", "me", "rw", func(s *state) { late(s, &Image{Digest: "other"}) }, none(decision{})},
		{"one that it has by another name is", "Always", "me", "rw", func(s *state) { late(s, &Image{Digest: "d"}) }, decision{start: 1}},
		{"a new machine: init containers run again", "Always", "im", "0w", func(s *state) { s.machine = machineState{} }, none(decision{restart: []int{0}, acquire: true})},
		{"not while the old one may be adopted", "Always", "im", "0w", func(s *state) { s.machine = machineState{adopt: true} }, none(decision{adopt: true})},
		{"no machine while the init container backs off", "Always", "im", "bw", func(s *state) { s.machine = machineState{} }, none(decision{wake: t0.Add(time.Second)})},
		{"deadline to come", "Always", "m", "r", func(s *state) { s.pod.Spec.ActiveDeadlineSeconds = new(int64); *s.pod.Spec.ActiveDeadlineSeconds = 5 }, none(decision{wake: t0.Add(5 * time.Second)})},
		{"deadline exceeded", "Always", "m", "r", func(s *state) { s.pod.Spec.ActiveDeadlineSeconds = new(int64) },
			none(decision{kill: &podKill{reason: "DeadlineExceeded", message: deadlineMessage, ending: ending{since: t0, grace: 30 * time.Second}}})},
		{"killed: asks what runs", "Always", "m", "r", func(s *state) { killed(s, time.Minute, false) }, none(decision{list: true})},
		{"killed: stop signal", "Always", "m", "r", func(s *state) { killed(s, time.Minute, true) },
			none(decision{signals: []signalAct{{container: 0, signal: syscall.SIGTERM}}, wake: t0.Add(time.Minute)})},
		{"killed: nothing is restarted", "Always", "mm", "1w", func(s *state) { killed(s, time.Minute, true) }, none(decision{finish: true})},
		{"killed without a machine", "Always", "m", "w", func(s *state) { killed(s, time.Minute, false); s.machine = machineState{} }, none(decision{finish: true})},
		{"killed: the machine of an earlier process is adopted", "Always", "m", "u", func(s *state) {
			killed(s, time.Minute, false)
			s.machine.step, s.machine.adopt = machineNone, true
		}, none(decision{adopt: true})},
		{"stop: the hook comes first", "Always", "m", "p", func(s *state) { term(s, time.Minute, true) },
			none(decision{preStop: []hookAct{{0, t0.Add(time.Minute)}}, wake: t0.Add(time.Minute)})},
		{"stop: the hook runs", "Always", "m", "q", func(s *state) { term(s, time.Minute, true) }, none(decision{wake: t0.Add(time.Minute)})},
		{"stop: the hook is over", "Always", "m", "q", func(s *state) { term(s, time.Minute, true); s.containers[0].preStop = hookOver },
			none(decision{signals: []signalAct{{container: 0, signal: syscall.SIGTERM}}, wake: t0.Add(time.Minute)})},
		{"stop: a hook that uses the grace up leaves 2 s", "Always", "m", "q", func(s *state) { term(s, time.Minute, true); s.deletion.since = t0.Add(-time.Minute) },
			none(decision{signals: []signalAct{{container: 0, signal: syscall.SIGTERM}}, wake: t0.Add(stopWindow)})},
		{"stop: by force there is no hook", "Always", "m", "q", func(s *state) { term(s, 0, true) },
			none(decision{signals: []signalAct{{container: 0, signal: syscall.SIGKILL, all: true}}, wake: t0.Add(killWait)})},
		{"stop: main containers before sidecars", "Always", "ssm", "rrr", func(s *state) { term(s, time.Minute, true) },
			none(decision{signals: []signalAct{{container: 2, signal: syscall.SIGTERM}}, wake: t0.Add(time.Minute)})},
		{"stop: the last sidecar first", "Always", "ssm", "rr0", func(s *state) { term(s, time.Minute, true) },
			none(decision{signals: []signalAct{{container: 1, signal: syscall.SIGTERM}}, wake: t0.Add(time.Minute)})},
		{"stop: then the one before", "Always", "ssm", "r00", func(s *state) { term(s, time.Minute, true) },
			none(decision{signals: []signalAct{{container: 0, signal: syscall.SIGTERM}}, wake: t0.Add(time.Minute)})},
		{"stop: a sidecar's hook does not wait for its turn", "Always", "sm", "pr", func(s *state) {
			term(s, time.Minute, true)
			s.containers[1].stopSent, s.containers[1].stopAt = true, t0
		},
			none(decision{preStop: []hookAct{{0, t0.Add(time.Minute)}}, wake: t0.Add(time.Minute)})},
		{"stop: a sidecar that had no turn gets its signal at the end of the grace", "Always", "sm", "rr", func(s *state) {
			term(s, time.Minute, true)
			s.deletion.since = t0.Add(-time.Minute)
			s.containers[1].stopSent, s.containers[1].stopAt, s.containers[1].killSent = true, t0.Add(-time.Minute), true
		}, none(decision{signals: []signalAct{{container: 0, signal: syscall.SIGTERM}}, wake: t0.Add(stopWindow)})},
		{"stop of one container", "Always", "mm", "pr", func(s *state) { s.containers[0].stop = &containerStop{since: t0, grace: time.Minute} },
			none(decision{preStop: []hookAct{{0, t0.Add(time.Minute)}}, wake: t0.Add(time.Minute)})},
		{"stop of one container: its time is up", "Always", "mm", "rr", func(s *state) {
			s.containers[0].stop = &containerStop{since: t0.Add(-time.Minute), grace: time.Minute}
			s.containers[0].stopSent, s.containers[0].stopAt = true, t0.Add(-time.Minute)
		}, none(decision{signals: []signalAct{{container: 0, signal: syscall.SIGKILL, all: true}}})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := steps(kinds(testState(corev1.RestartPolicy(tt.policy), len(tt.kinds)), tt.kinds), tt.steps)
			if tt.change != nil {
				tt.change(s)
			}
			if got := decide(s, t0); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("\n got %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

// late makes the last container one of an image that only it has.
func late(s *state, img *Image) {
	key := imageKey{"late", PullAlways}
	s.plan.late = []imageKey{key}
	s.plan.containers[len(s.plan.containers)-1].image = key
	s.images[key] = &imageState{image: img}
}

func killed(s *state, grace time.Duration, listed bool) {
	s.kill = &podKill{reason: "Evicted", message: "too much", ending: ending{since: t0, grace: grace, listed: listed}}
}

func TestRestarts(t *testing.T) {
	rule := func(op corev1.ContainerRestartRuleOnExitCodesOperator, codes ...int32) []corev1.ContainerRestartRule {
		return []corev1.ContainerRestartRule{{Action: corev1.ContainerRestartRuleActionRestart, ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: op, Values: codes}}}
	}
	for _, tt := range []struct {
		name, policy, own string
		kind              containerKind
		rules             []corev1.ContainerRestartRule
		code              int32
		want              bool
	}{
		{"always", "Always", "", kindMain, nil, 0, true},
		{"unset is always", "", "", kindMain, nil, 0, true},
		{"never", "Never", "", kindMain, nil, 1, false},
		{"on failure, well", "OnFailure", "", kindMain, nil, 0, false},
		{"on failure, badly", "OnFailure", "", kindMain, nil, 1, true},
		{"init, well", "Always", "", kindInit, nil, 0, false},
		{"init, badly", "Always", "", kindInit, nil, 1, true},
		{"init, never", "Never", "", kindInit, nil, 1, false},
		{"init with a policy of its own", "Never", "OnFailure", kindInit, nil, 1, true},
		{"sidecar", "Never", "Always", kindSidecar, nil, 0, true},
		{"ephemeral", "Always", "", kindEphemeral, nil, 1, false},
		{"own never", "Always", "Never", kindMain, nil, 1, false},
		{"own always", "Never", "Always", kindMain, nil, 0, true},
		{"rule in", "Never", "Never", kindMain, rule("In", 3, 4), 4, true},
		{"rule in, another code", "Always", "Never", kindMain, rule("In", 3, 4), 5, false},
		{"rule not in", "Never", "Never", kindMain, rule("NotIn", 3), 4, true},
		{"rules need a policy of the container", "Never", "", kindMain, rule("In", 4), 4, false},
	} {
		p := &containerPlan{kind: tt.kind, spec: &corev1.Container{RestartPolicyRules: tt.rules}}
		if tt.own != "" {
			own := corev1.ContainerRestartPolicy(tt.own)
			p.spec.RestartPolicy = &own
		}
		if got := restarts(corev1.RestartPolicy(tt.policy), p, &termination{ExitCode: tt.code}); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

func TestStatusOfKinds(t *testing.T) {
	for _, tt := range []struct {
		name, policy, kinds, steps string
		change                     func(*state)
		phase                      corev1.PodPhase
		initialized, ready         bool
		message                    string // of the condition Initialized
	}{
		{"new", "Always", "im", "ww", nil, "Pending", false, false, "containers with incomplete status: [a]"},
		{"init runs", "Always", "im", "rw", nil, "Pending", false, false, "containers with incomplete status: [a]"},
		{"init failed, to be tried again", "Always", "im", "1w", nil, "Pending", false, false, "containers with incomplete status: [a]"},
		{"init in back-off", "Always", "im", "bw", nil, "Pending", false, false, "containers with incomplete status: [a]"},
		{"init failed for good", "Never", "im", "1w", nil, "Failed", false, false, "containers with incomplete status: [a]"},
		{"init failed for good, a sidecar runs", "Never", "sim", "r1w", func(s *state) { s.machine.passed = 1 }, "Pending", false, false, "containers with incomplete status: [b]"},
		{"init done", "Always", "im", "0w", nil, "Pending", true, false, ""},
		{"all run", "Always", "ism", "0rr", nil, "Running", true, true, ""},
		{"sidecar not up", "Always", "sm", "hw", nil, "Pending", false, false, "containers with incomplete status: [a]"},
		{"sidecar down, main runs", "Always", "sm", "br", func(s *state) { s.machine.passed = 1 }, "Running", true, false, ""},
		{"main's hook is not over", "Always", "m", "h", nil, "Pending", true, false, ""},
		{"main ended, sidecar runs", "Never", "sm", "r0", nil, "Running", true, false, ""},
		{"main ended, sidecar failed", "Never", "sm", "10", func(s *state) { s.machine.passed = 1 }, "Succeeded", true, false, ""},
		{"an ephemeral container that failed is nobody's failure", "Never", "me", "01", nil, "Succeeded", true, false, ""},
		{"killed, not down", "Always", "m", "r", func(s *state) { killed(s, 0, true) }, "Running", true, true, ""},
		{"killed and down", "Always", "m", "0", func(s *state) { killed(s, 0, true); s.stage = stageFinished }, "Failed", true, false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := steps(kinds(testState(corev1.RestartPolicy(tt.policy), len(tt.kinds)), tt.kinds), tt.steps)
			if tt.change != nil {
				tt.change(s)
			}
			st := podStatus(s, &corev1.PodStatus{}, "192.0.2.1", t0)
			got := map[corev1.PodConditionType]corev1.PodCondition{}
			for _, c := range st.Conditions {
				got[c.Type] = c
			}
			init := got[corev1.PodInitialized]
			if st.Phase != tt.phase || init.Status == "True" != tt.initialized || init.Message != tt.message || got[corev1.PodReady].Status == "True" != tt.ready {
				t.Errorf("phase %s, initialized %+v, ready %+v; want %+v", st.Phase, init, got[corev1.PodReady], tt)
			}
			if len(st.InitContainerStatuses) != len(s.pod.Spec.InitContainers) || len(st.ContainerStatuses) != len(s.pod.Spec.Containers) ||
				len(st.EphemeralContainerStatuses) != len(s.pod.Spec.EphemeralContainers) {
				t.Errorf("statuses are %+v", st)
			}
			if s.kill != nil && st.Phase == corev1.PodFailed && (st.Reason != "Evicted" || got[corev1.DisruptionTarget].Status != "True") {
				t.Errorf("reason %q, conditions %+v", st.Reason, st.Conditions)
			}
		})
	}
}

// A pod is disrupted by what happens to its node, not by what it asks for: a Job may be told
// not to count the one.
func TestDisruption(t *testing.T) {
	for reason, want := range map[string]bool{reasonEvicted: true, reasonTerminated: true, reasonDeadlineExceeded: false, reasonSysctlForbidden: false} {
		s := steps(testState("Never", 1), "w")
		s.stage, s.kill = stageFinished, &podKill{reason: reason}
		st := podStatus(s, &corev1.PodStatus{}, "", t0)
		got := slices.ContainsFunc(st.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.DisruptionTarget })
		if got != want || st.Reason != reason {
			t.Errorf("%s: reason %q, disrupted %v", reason, st.Reason, got)
		}
	}
}

// What an ephemeral container can never have is said with a remedy.
func TestEphemeralStatus(t *testing.T) {
	s := steps(kinds(testState("Always", 2), "me"), "rw")
	late(s, &Image{Digest: "other"})
	w := podStatus(s, &corev1.PodStatus{}, "", t0).EphemeralContainerStatuses[0].State.Waiting
	if w == nil || w.Reason != ReasonImageNotInMachine || w.Message == "" {
		t.Errorf("waits with %+v", w)
	}
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a"}}, EphemeralContainers: []corev1.EphemeralContainer{
		{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "e", VolumeDevices: []corev1.VolumeDevice{{Name: "v"}}}},
		{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "f", Stdin: true, TTY: true}, TargetContainerName: "a"},
	}}}
	p := planOf(pod)
	if p.containers[1].refused != "spec.ephemeralContainers[0].volumeDevices: not supported yet" || p.containers[2].refused != "" || p.containers[2].target != "a" || len(p.late) != 0 {
		t.Errorf("plan is %+v", p)
	}
}
