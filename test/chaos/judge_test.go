// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestJudgePod(t *testing.T) {
	running := corev1.ContainerStatus{Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}
	restarted := running
	restarted.RestartCount = 1
	waiting := corev1.ContainerStatus{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}}}
	ended := func(code int32, reason, message string) corev1.ContainerStatus {
		return corev1.ContainerStatus{State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Reason: reason, Message: message}}}
	}
	never, always := born{program: Counter}, born{program: Counter, always: true}
	for name, tc := range map[string]struct {
		phase    corev1.PodPhase
		status   corev1.ContainerStatus
		born     born
		killed   bool
		pressed  bool
		evicted  bool
		deleting bool
		want     string // part of the fault; empty: none
	}{
		"runs":                          {phase: corev1.PodRunning, status: running, born: never},
		"still pending":                 {phase: corev1.PodPending, status: waiting, born: never, want: "nothing explains"},
		"terminating":                   {phase: corev1.PodRunning, status: running, born: never, deleting: true, want: "still being deleted"},
		"runs without container":        {phase: corev1.PodRunning, status: waiting, born: never, want: "without its container"},
		"Never, started again":          {phase: corev1.PodRunning, status: restarted, born: never, killed: true, want: "policy is Never"},
		"Always, started again":         {phase: corev1.PodRunning, status: restarted, born: always, killed: true},
		"Always, started for no reason": {phase: corev1.PodRunning, status: restarted, born: always, want: "nobody has killed"},
		"brief, still runs":             {phase: corev1.PodRunning, status: running, born: born{program: Brief}, want: "has not ended"},
		"brief, always":                 {phase: corev1.PodRunning, status: ended(0, "Completed", ""), born: born{program: Brief, always: true}},
		"brief":                         {phase: corev1.PodSucceeded, status: ended(0, "Completed", ""), born: born{program: Brief}},
		"counter cannot succeed":        {phase: corev1.PodSucceeded, status: ended(0, "Completed", ""), born: never, want: "nothing explains"},
		"failing":                       {phase: corev1.PodFailed, status: ended(FailingCode, "Error", ""), born: born{program: Failing}},
		"brief failed":                  {phase: corev1.PodFailed, status: ended(1, "Error", ""), born: born{program: Brief}, want: "nothing explains"},
		"failed for no reason":          {phase: corev1.PodFailed, status: ended(137, "MachineDied", "it died"), born: never, want: "nothing explains"},
		"killed":                        {phase: corev1.PodFailed, status: ended(137, "MachineDied", "it died"), born: never, killed: true},
		"killed and silent about it":    {phase: corev1.PodFailed, status: ended(137, "", ""), born: never, killed: true, want: "does not say why"},
		"crashed":                       {phase: corev1.PodFailed, status: ended(137, "MachineDied", "it died"), born: born{program: Crashing}},
		"crashed, still runs":           {phase: corev1.PodRunning, status: running, born: born{program: Crashing}, want: "has not ended"},
		"crashed and silent about it":   {phase: corev1.PodFailed, status: ended(137, "", ""), born: born{program: Crashing}, want: "does not say why"},
		"evicted":                       {phase: corev1.PodFailed, status: waiting, born: always, pressed: true, evicted: true},
		"evicted for no reason":         {phase: corev1.PodFailed, status: waiting, born: never, evicted: true, want: "nothing explains"},
		"failed on a full disk":         {phase: corev1.PodFailed, status: ended(137, "MachineDied", "it died"), born: never, pressed: true, want: "nothing explains"},
		"killed, but Always":            {phase: corev1.PodFailed, status: ended(137, "MachineDied", "it died"), born: always, killed: true, want: "nothing explains"},
	} {
		t.Run(name, func(t *testing.T) {
			pod := &corev1.Pod{Status: corev1.PodStatus{Phase: tc.phase, ContainerStatuses: []corev1.ContainerStatus{tc.status}}}
			if tc.deleting {
				pod.DeletionTimestamp = &metav1.Time{}
			}
			if tc.evicted {
				pod.Status.Reason, pod.Status.Message = "Evicted", "The node was low on resource: ephemeral-storage."
			}
			expect(t, judgePod(pod, tc.born, fate{killed: tc.killed, pressed: tc.pressed}), tc.want)
		})
	}
}

func TestJudgeLog(t *testing.T) {
	whole := "start\n"
	for i := range BriefLines {
		whole += "line " + string(rune('0'+(i+1)/10)) + string(rune('0'+(i+1)%10)) + "\n"
	}
	whole = strings.ReplaceAll(whole, "line 0", "line ")
	of := born{template: "alpha", newest: 2}
	for name, tc := range map[string]struct {
		log   string
		born  born
		ended bool
		want  string
	}{
		"nothing yet":    {},
		"nothing at all": {ended: true, want: "begins with"},
		"counts":         {log: "start\nline 1\nline 2\n"},
		"half a line":    {log: "start\nline 1\nline", want: "line 2 is"},
		"gap":            {log: "start\nline 1\nline 3\n", want: "line 2 is"},
		"twice":          {log: "start\nline 1\nline 1\n", want: "line 2 is"},
		"started twice":  {log: "start\nline 1\nstart\nline 1\n", want: "started 2 times"},
		"no beginning":   {log: "line 1\n", want: "begins with"},
		"whole":          {log: whole, ended: true},
		"cut short":      {log: "start\nline 1\n", ended: true, want: "1 lines of 20"},
		"template":       {log: "start\nalpha-2\nline 1\n", born: of},
		"older template": {log: "start\nalpha-1\n", born: of},
		"from nowhere":   {log: "start\nalpha-3\nline 1\n", born: of, want: "alpha-1 to 2"},
		"other template": {log: "start\nbeta-2\nline 1\n", born: of, want: "alpha-1 to 2"},
		"no template":    {log: "start\nline 1\n", born: of, want: "alpha-1 to 2"},
	} {
		t.Run(name, func(t *testing.T) { expect(t, judgeLog(tc.log, tc.born, tc.ended), tc.want) })
	}
}

func TestCRIText(t *testing.T) {
	for name, tc := range map[string]struct{ file, want, fault string }{
		"none":            {},
		"lines":           {file: "t stdout F start\nt stdout F line 1\n", want: "start\nline 1\n"},
		"parts":           {file: "t stdout P li\nt stdout F ne 1\n", want: "line 1\n"},
		"being written":   {file: "t stdout F start\nt stdout F li", want: "start\n"},
		"an empty line":   {file: "t stderr F \n", want: "\n"},
		"no line of it":   {file: "t stdout F start\n\n", fault: "line 2"},
		"no such marking": {file: "t stdout X start\n", fault: "line 1"},
	} {
		got, err := criText(tc.file)
		if expect(t, err, tc.fault); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

func TestJudgeAside(t *testing.T) {
	for name, tc := range map[string]struct {
		damaged map[string]bool
		blamed  map[string]int
		base    bool
		want    string
	}{
		"nothing was done to it":            {want: "it was not damaged, and 0 of its machines were disturbed: why"},
		"damaged":                           {damaged: map[string]bool{"i": true}},
		"another instance was damaged":      {damaged: map[string]bool{"j": true}, want: "not damaged"},
		"one machine killed":                {blamed: map[string]int{"k": 1, "l": 9}, want: "1 of its machines"},
		"two machines killed":               {blamed: map[string]int{"k": 2}},
		"one killed, and one that builds":   {blamed: map[string]int{"k": 1, anyBase: 1}, base: true},
		"builds come from bases":            {blamed: map[string]int{"k": 1, anyBase: 1}, want: "1 of its machines"},
		"machines of another, and no other": {blamed: map[string]int{"l": 2}, want: "0 of its machines"},
	} {
		t.Run(name, func(t *testing.T) {
			expect(t, judgeAside(aside{Key: "k", Instance: "i", Reason: "why", base: tc.base}, tc.damaged, tc.blamed), tc.want)
		})
	}
}

func TestPressedSince(t *testing.T) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	over := window{from: at, until: at.Add(time.Minute)}
	for name, tc := range map[string]struct {
		windows []window
		then    time.Duration
		want    bool
	}{
		"never full":        {},
		"full since":        {windows: []window{{from: at}}, then: time.Hour, want: true},
		"made before":       {windows: []window{over}, then: -time.Hour, want: true},
		"made meanwhile":    {windows: []window{over}, then: time.Second, want: true},
		"made a bit later":  {windows: []window{over}, then: 80 * time.Second, want: true},
		"made long after":   {windows: []window{over}, then: time.Hour},
		"one of two counts": {windows: []window{over, {from: at.Add(time.Hour)}}, then: time.Hour, want: true},
	} {
		if got := pressedSince(tc.windows, at.Add(tc.then)); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestSightings(t *testing.T) {
	type seen struct{ pod, run string }
	for name, tc := range map[string]struct {
		seen   []seen
		starts int // of p
		fault  string
	}{
		"nobody":               {},
		"one run":              {seen: []seen{{"p", "1"}, {"p", "1"}}, starts: 1},
		"one after another":    {seen: []seen{{"p", "1"}, {"p", "1"}, {"p", "2"}, {"p", "2"}}, starts: 2},
		"beside each other":    {seen: []seen{{"p", "1"}, {"p", "2"}, {"p", "1"}}, starts: 2, fault: "run 1 was heard of after run 2"},
		"another pod":          {seen: []seen{{"p", "1"}, {"q", "2"}, {"p", "1"}}, starts: 1},
		"two pods of one name": {seen: []seen{{"q", "1"}, {"p", "1"}}, fault: "one entropy"},
		"no name":              {seen: []seen{{"p", ""}}, fault: "no name"},
	} {
		s := newSightings()
		for _, x := range tc.seen {
			s.see(x.pod, x.run)
		}
		found := strings.Join(s.found(), "; ")
		if s.starts("p") != tc.starts || (found == "") != (tc.fault == "") || !strings.Contains(found, tc.fault) {
			t.Errorf("%s: %d starts, %q; want %d, %q", name, s.starts("p"), found, tc.starts, tc.fault)
		}
	}
}

func TestJudgeMachines(t *testing.T) {
	for name, tc := range map[string]struct {
		count machineCount
		want  string
	}{
		"none":             {},
		"all":              {count: machineCount{processes: 3, directories: 3, pods: 1, ready: 2, active: 1, warm: 2}},
		"directory":        {count: machineCount{processes: 1, directories: 2, pods: 1, active: 1}, want: "2 directories"},
		"leaked":           {count: machineCount{processes: 2, directories: 2, pods: 1, active: 1}, want: "2 processes for 1"},
		"ledger forgets":   {count: machineCount{processes: 1, directories: 1, pods: 1}, want: "the ledger has 0 active"},
		"ledger remembers": {count: machineCount{processes: 1, directories: 1, pods: 1, active: 1, warm: 1}, want: "and 1 warm"},
	} {
		t.Run(name, func(t *testing.T) { expect(t, judgeMachines(tc.count), tc.want) })
	}
}

func expect(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("found %v", err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("found %v, want a fault about %q", err, want)
	}
}
