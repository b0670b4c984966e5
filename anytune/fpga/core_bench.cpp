// Drives a Verilated core with one stream in and one out, both sides stalled at random. CORE_CLASS: its class; BEAT_IN,
// BEAT_OUT: words of 32 bits of a beat.
#include "verilated.h"
#define QUOTE(x) #x
#define HEADER(x) QUOTE(x.h)
#include HEADER(CORE_CLASS)
#include <cstdint>

double sc_time_stamp() { return 0; }

// Beats in, beats out; returns the cycles it took, or -1 if the core stood still.
extern "C" int64_t core_run(int64_t beats, const uint32_t *in, uint32_t *out, uint32_t stall_in, uint32_t stall_out) {
    VerilatedContext context;
    CORE_CLASS top(&context, "top");
    uint64_t random = 88172645463325252ull;
    auto tick = [&] { top.aclk = 1; top.eval(); top.aclk = 0; top.eval(); };
    auto chance = [&](uint32_t of1024) {
        random ^= random << 13; random ^= random >> 7; random ^= random << 17;
        return (random >> 20 & 1023) < of1024;
    };
    top.aclk = 0; top.aresetn = 0; top.s_axis_tvalid = 0; top.m_axis_tready = 0; top.eval();
    for (int i = 0; i < 4; i++) tick();
    top.aresetn = 1;
    int64_t sent = 0, got = 0, cycles = 0, still = 0;
    bool offered = false;
    while (got < beats && still < 1000) {
        if (!offered) offered = sent < beats && !(stall_in && chance(stall_in));
        top.s_axis_tvalid = offered;
        if (offered) for (int i = 0; i < BEAT_IN; i++) top.s_axis_tdata[i] = in[sent * BEAT_IN + i];
        top.m_axis_tready = !(stall_out && chance(stall_out));
        top.eval();
        bool takes = offered && top.s_axis_tready, gives = top.m_axis_tvalid && top.m_axis_tready;
        if (gives) for (int i = 0; i < BEAT_OUT; i++) out[got * BEAT_OUT + i] = top.m_axis_tdata[i];
        got += gives; sent += takes; still = takes || gives ? 0 : still + 1;
        if (takes) offered = false;
        tick(); cycles++;
    }
    top.final();
    return got == beats ? cycles : -1;
}
